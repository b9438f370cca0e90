#!/usr/bin/env bash
# The VMs of this host: which of them have cards, and what an interrupted test has left.
# Needs: files, guests
#
# Gives: vm_name ID, vm_ids, is_running ID, remove_vm ID; remove_leftovers; check_functions, check_other_vms. Variables: FUNCTIONS, NAME,
#   FOLDER, PCI of passthrough_test.sh.

vm_name() { sed -n '/^\[/q; s/^name: //p' "$ROOT/etc/pve/qemu-server/$1.conf" 2>/dev/null || :; } # ID; nothing where there is none
# is_running ID - or may it, as far as anybody knows?
is_running() {
  find_power qm "$1"
  [[ $POWER_NOW =~ ^(on|unknown)$ ]]
}

# remove_vm ID - a lock that an interrupted command has left is passed over.
remove_vm() { DOING="test VM" run_logged qm stop "$1" --skiplock 1 && DOING="test VM" run_logged qm destroy "$1" --skiplock 1 --purge 1; }

vm_ids() { find "$ROOT/etc/pve/qemu-server/" -name '[1-9]*.conf' -printf '%f\n' | sed 's/\.conf$//' | sort -n; }

remove_leftovers() {
  local id status
  for id in $(vm_ids); do
    [[ $(vm_name "$id") == "$NAME" ]] || continue
    # Ours never has one. Whoever gave this name to a VM of their own keeps it.
    status=0
    grep -aqE '^(ide|sata|scsi|virtio|efidisk|tpmstate|unused|net)[0-9]+:' "$ROOT/etc/pve/qemu-server/$id.conf" || status=$?
    ((status == 1)) || die "the name $NAME for the test VM alone" \
      "VM $id has it, with disks or a network" "a VM of that name counts as the rest of an earlier test, and is removed" \
      "give VM $id another name: qm set $id --name NAME"
    log "note: removing VM $id, which an interrupted test has left"
    remove_vm "$id" || die "VM $id removed, which an interrupted test has left" "$OUTPUT" "it may hold the card" \
      "look at it with \`qm config $id\`, remove it with \`qm destroy $id\`"
  done
  rm -rf "$ROOT$FOLDER"
}

check_functions() {
  local function address wanted device vendor id driver
  for function in $FUNCTIONS; do
    address=${function%%=*} wanted=${function#*=} device=$PCI/${function%%=*}
    vendor=none id=none
    [[ ! -r $device/vendor ]] || read -r vendor <"$device/vendor"
    [[ ! -r $device/device ]] || read -r id <"$device/device"
    [[ ${vendor#0x}:${id#0x} == "$wanted" ]] || die "$wanted at $address" "${vendor#0x}:${id#0x}" \
      "another device would be given to the test VM" "see \`lspci -Dnn\`; \`pulumi up --refresh\` looks where the card is now"
    driver=$(readlink "$device/driver") || driver=none
    [[ ${driver##*/} == vfio-pci ]] || die "$address on vfio-pci" "its driver is ${driver##*/}" \
      "starting the test VM would take it from that driver while the host runs, which can hang it" \
      "bind it at boot: \`pulumi up --refresh\`"
  done
}

# functions_in - of the slots and functions that come on standard input, one a line, does one hold a function of ours?
functions_in() {
  local function place status=1
  while read -r place; do # to the end, or whoever writes would fail
    place=${place,,}
    [[ $place == *:*:* ]] || place=0000:$place
    for function in $FUNCTIONS; do
      [[ ${function%%=*} != "$place" && ${function%%=*} != "$place".* ]] || status=0
    done
  done
  return "$status"
}

# configured_for ID - the slots and functions of its hostpci options. A mapping of several cards doesn't tell which of them
# the VM has; the reservations do.
configured_for() {
  local option part
  while read -r option; do
    for part in ${option//,/ }; do
      case $part in
        mapping=*) mapped "${part#mapping=}" ;;
        host=*) tr ';' '\n' <<<"${part#host=}" ;;
        *=*) ;;
        *) tr ';' '\n' <<<"$part" ;;
      esac
    done
  done < <(sed -n '/^\[/q; s/^hostpci[0-9]*: *//p' "$ROOT/etc/pve/qemu-server/$1.conf")
}

# mapped NAME - what the resource mapping stands for on this node, if it is one card.
mapped() {
  local file=$ROOT/etc/pve/mapping/pci.cfg node
  [[ -r $file ]] || return 0
  node=$(hostname)
  awk -v name="$1" -v node="node=${node%%.*}" '
    /^[^ \t#]/ { inside = ($1 == name) }
    inside && $1 == "map" && index("," $2 ",", "," node ",") { entry = $2; count++ }
    END { if (count == 1 && match(entry, /path=[^,]*/)) print substr(entry, RSTART + 5, RLENGTH - 5) }' "$file" | tr ';' '\n'
}

reserved_for() { # ID
  [[ ! -r $ROOT/run/qemu-server/pci-id-reservations ]] || awk -v id="$1" '$2 == id { print $1 }' "$ROOT/run/qemu-server/pci-id-reservations"
}

need_read() { # PATH
  [[ ! -e $ROOT$1 ]] || cat "$ROOT$1" >/dev/null 2>&1 || die "the card free for the test VM: $FUNCTIONS" "$1 can't be read" \
    "a VM that runs with the card may stand in it" "read it on the host yourself, mend what keeps it from being read, and run \`pulumi up\` again"
}

check_other_vms() {
  local id holders='' ids
  ids=$(vm_ids)
  need_read /run/qemu-server/pci-id-reservations
  need_read /etc/pve/mapping/pci.cfg
  for id in $ids; do
    need_read "/etc/pve/qemu-server/$id.conf"
    if { configured_for "$id" && reserved_for "$id"; } | functions_in && is_running "$id"; then
      holders+="${holders:+, }VM $id ($(vm_name "$id"))"
    fi
  done
  [[ -z $holders ]] || die "the card free for the test VM: $FUNCTIONS" "$holders runs with it" \
    "only one running VM can have a card, and a running one is never stopped for a test" \
    "shut it down and run \`pulumi up\` again, or take passthroughTest out of the settings"
}
