#!/usr/bin/env bash
# Proves that a card can be passed through: a small VM gets it and says on its serial console what it sees; then the VM is
# removed, also after a failure. It starts the host's own kernel with an initramfs that is made here of what the host has.
#
# Arguments: FUNCTIONS (address=vendor:device of every function; separated by spaces), VMID (empty: the next free one), TIMEOUT
#   (seconds from the VM's start until it has said all), NAME (the VM's), FOLDER (for the test's files, below /run), INIT (/init).
# Changes: nothing that lasts. The VM and FOLDER are gone at the end; those of a run that was killed go with the next.
# Refuses while another VM runs with one of the functions, and functions that are not on vfio-pci.
# Verbs: apply; its two halves without Proxmox VE, for any QEMU: build makes FOLDER/initrd.img and answers {"kernel","initrd",
#   "append"}; after a boot of these with `-serial file:FOLDER/console -no-reboot`, report answers from that file as apply does.
# Answer: {"kernel","vmid","functions":[{"guest","address","id","class","bars":[{"index","size"}]}]}; sizes in bytes.

MARK=homelab-passthrough # what the lines of /init begin with
PCI=$ROOT/sys/bus/pci/devices
KERNEL=/boot/vmlinuz-$(uname -r)
APPEND="console=ttyS0 panic=-1" # an init that fails is a panic, a panic a reboot, and with QEMU's -no-reboot the end
OURS=no                         # are the VM and FOLDER ours to remove?
VM=''                           # the test VM's id, while there may be one
LEFT=''                         # why it could not be removed
READER=''                       # the process that takes what comes from the console

apply() {
  take_lock
  [[ $FOLDER =~ ^/run/homelab-[a-z0-9-]+$ ]] || die "a folder of our own below /run, which is removed at the end" "'$FOLDER'" \
    "what is in another one would be lost" "name one such as /run/homelab-passthrough-test"
  remove_leftovers
  check_functions
  check_other_vms
  trap 'stopped_by SIGHUP' HUP
  trap 'stopped_by SIGINT' INT
  trap 'stopped_by SIGTERM' TERM
  OURS=yes
  make_initramfs
  create_vm
  run_vm
  read_console
  undo
  [[ -z $LEFT ]] || die "the test VM removed again" "$LEFT" "it has the card, and is of no more use" \
    "qm stop $VMID; qm destroy $VMID --purge"
  compare
  answer "$VMID"
}

build() {
  make_initramfs
  printf '{"kernel":%s,"initrd":%s,"append":%s}\n' "$(json_string "$KERNEL")" "$(json_string "$FOLDER/initrd.img")" \
    "$(json_string "$APPEND")"
}

report() {
  read_console
  compare
  answer null
}

# In place of the one in lib/files.sh: what this run changed is a VM and a folder. `die` calls it, whatever happened.
undo() {
  [[ $OURS == yes ]] || return 0
  trap '' HUP INT TERM
  [[ -z $READER ]] || kill "$READER" 2>/dev/null || : # it may have ended
  # Under that id there may be a VM of somebody else: then ours could not be created.
  if [[ -n $VM && $(vm_name "$VM") == "$NAME" ]] && ! remove_vm "$VM"; then
    LEFT="VM $VM ($NAME) is still there: $OUTPUT"
    log "$LEFT"
  fi
  VM=''
  rm -rf "$ROOT$FOLDER"
}

stopped_by() {
  die "the passthrough test run to its end" "it was stopped by $1" "it hasn't shown that the card works in a VM" "run \`pulumi up\` again"
}

# -- before ----------------------------------------------------------------------------------------------------------
vm_name() { sed -n '/^\[/q; s/^name: //p' "$ROOT/etc/pve/qemu-server/$1.conf" 2>/dev/null || :; } # ID; nothing where there is none
is_running() { [[ $(within "$ASK_SECONDS" qm status "$1") == "status: running" ]]; }

# remove_vm ID - a lock that an interrupted command has left is passed over.
remove_vm() { run_logged qm stop "$1" --skiplock 1 && run_logged qm destroy "$1" --skiplock 1 --purge 1; }

vm_ids() { find "$ROOT/etc/pve/qemu-server/" -name '[1-9]*.conf' -printf '%f\n' | sed 's/\.conf$//' | sort -n; }

remove_leftovers() {
  local id
  for id in $(vm_ids); do
    [[ $(vm_name "$id") == "$NAME" ]] || continue
    # Ours never has one. Whoever gave this name to a VM of their own keeps it.
    ! grep -qE '^(ide|sata|scsi|virtio|efidisk|tpmstate|unused|net)[0-9]+:' "$ROOT/etc/pve/qemu-server/$id.conf" || die "the name $NAME for the test VM alone" \
      "VM $id has it, with disks or a network" "a VM of that name is taken for the rest of an earlier test, and removed" \
      "give VM $id another name: qm set $id --name NAME"
    log "removing VM $id, which an interrupted test has left"
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

check_other_vms() {
  local id holders=''
  for id in $(vm_ids); do
    if { configured_for "$id" && reserved_for "$id"; } | functions_in && is_running "$id"; then
      holders+="${holders:+, }VM $id ($(vm_name "$id"))"
    fi
  done
  [[ -z $holders ]] || die "the card free for the test VM: $FUNCTIONS" "$holders runs with it" \
    "only one running VM can have a card, and a running one is never stopped for a test" \
    "shut it down and run \`pulumi up\` again, or take passthroughTest out of the settings"
}

# -- the VM ------------------------------------------------------------------------------------------------------------
# place_in SLOT - the slot, where all that is in it is given; else those of its functions that are.
place_in() {
  local function path mine=() there=0 IFS=$' \n'
  for function in $FUNCTIONS; do
    [[ ${function%%=*} != "$1".* ]] || mine+=("${function%%=*}")
  done
  for path in "$PCI/$1".*; do
    [[ ! -e $path ]] || there=$((there + 1))
  done
  IFS=';'
  if ((${#mine[@]} == there)); then printf '%s' "$1"; else printf '%s' "${mine[*]}"; fi
}

create_vm() {
  local function slot slots=() hostpci=()
  for function in $FUNCTIONS; do
    slot=${function%%.*}
    [[ " ${slots[*]} " != *" $slot "* ]] || continue
    # rombar=0: the card's option ROM must not run in SeaBIOS, where it can hang before the kernel starts.
    hostpci+=("--hostpci${#slots[@]}" "host=$(place_in "$slot"),pcie=1,rombar=0")
    slots+=("$slot")
  done
  [[ -n $VMID ]] || VMID=$(within "$ASK_SECONDS" pvesh get /cluster/nextid --output-format json | tr -d '"')
  VM=$VMID # before there is one: a signal may come while qm still makes it
  # No OVMF: QEMU hands the kernel of -kernel over itself, which SeaBIOS is enough for. cpu host: it has the host's address width,
  # that large BARs need. Only root@pam may set args, and raw hostpci: qm is root@pam.
  run_logged qm create "$VMID" --name "$NAME" --description "homelab proves passthrough with this VM, and removes it." \
    --machine q35 --ostype l26 --cpu host --memory 512 --balloon 0 --tablet 0 --onboot 0 --vga none "${hostpci[@]}" \
    --args "-kernel $KERNEL -initrd $FOLDER/initrd.img -append '$APPEND' -serial file:$FOLDER/serial -no-reboot" ||
    die "a test VM with the id $VMID" "$OUTPUT" "passthrough is proved inside a VM" \
      "choose another id, or mend what the message says, then run \`pulumi up\` again"
}

# run_vm - starts it and waits until it has said all, is off, or its time is up.
run_vm() {
  mkfifo -m 0600 "$ROOT$FOLDER/serial"
  # The console is a pipe: whoever reads it learns of the END, and of the VM's end, the moment they come.
  timeout "$TIMEOUT" sed -u "/^$MARK END /q" "$ROOT$FOLDER/serial" >"$ROOT$FOLDER/console" 2>/dev/null {LOCK}>&- &
  READER=$!
  run_logged qm start "$VM" || die "the test VM started with the card" "$OUTPUT" \
    "what keeps it from starting would keep every VM with this card from it" \
    "see \`dmesg | grep -i vfio\` on the host, mend it, and run \`pulumi up\` again"
  wait "$READER" || log "the VM has not said all within $TIMEOUT s"
  READER=''
}

# -- what it has seen ----------------------------------------------------------------------------------------------------
# read_console - sets SEEN: address in the guest -> vendor:device class BAR...
read_console() {
  local mark address rest count=''
  declare -gA SEEN=()
  [[ -r $ROOT$FOLDER/console ]] || die "what the test VM has said on its console" "no $FOLDER/console" \
    "only the VM knows what it sees" "boot what \`build\` has made with -serial file:$FOLDER/console"
  while read -r mark address rest; do
    [[ $mark == "$MARK" ]] || continue
    case $address in
      BEGIN) SEEN=() ;;
      END) count=$rest ;;
      *) SEEN[$address]=$rest ;;
    esac
  done < <(tr -d '\r' <"$ROOT$FOLDER/console")
  [[ -n $count && $count == "${#SEEN[@]}" ]] || die "the list of PCI functions on the test VM's console, whole, within $TIMEOUT s" \
    "$(end_of_console)" "the VM started, but its kernel or its /init didn't get that far: with the card it may hang" \
    "see \`dmesg | tail\` on the host; a slow host may need a longer time"
}

end_of_console() {
  local text
  text=$(tail -n 12 "$ROOT$FOLDER/console" | tr -cd '[:print:]\n')
  if [[ -n ${text//[[:space:]]/} ]]; then
    printf 'it ends with:\n%s' "$text"
  else
    printf 'nothing came on the console'
  fi
}

# memory_bars ADDRESS - index:bytes of the memory BARs (IORESOURCE_MEM, 0x200) that it has on the host.
memory_bars() {
  local start end flags index=0
  while read -r start end flags && ((index < 6)); do
    ((! (flags & 0x200) || start == 0)) || printf '%s:%s\n' "$index" "$((end - start + 1))"
    index=$((index + 1))
  done <"$PCI/$1/resource"
}

# compare - sets GUEST: address on the host -> address in the guest, whose buses have numbers of their own. Functions with
# the same ids are told apart by their order, which hostpci keeps.
compare() {
  local function address wanted guest bar bars problems=() addresses
  declare -gA GUEST=()
  declare -A taken=()
  mapfile -t addresses < <(printf '%s\n' "${!SEEN[@]}" | sort)
  for function in $FUNCTIONS; do
    address=${function%%=*} wanted=${function#*=}
    for guest in "${addresses[@]}"; do
      [[ -z ${taken[$guest]:-} && ${SEEN[$guest]} == "$wanted "* ]] || continue
      GUEST[$address]=$guest taken[$guest]=yes
      break
    done
  done
  for function in $FUNCTIONS; do
    address=${function%%=*} wanted=${function#*=} guest=${GUEST[${function%%=*}]:-}
    if [[ -z $guest ]]; then
      find_in_its_place "$address"
      problems+=("$address ($wanted): $FOUND")
      continue
    fi
    read -r _ _ bars <<<"${SEEN[$guest]}"
    while read -r bar; do
      [[ " $bars" == *" $bar:"* ]] || problems+=("$address ($wanted): BAR ${bar%:*} of ${bar#*:} bytes has no address in the VM")
    done < <(memory_bars "$address")
  done
  ((${#problems[@]} == 0)) || die "every function of the card in the test VM, with its ids and memory BARs: $FUNCTIONS" \
    "$(printf '%s\n' "${problems[@]}")" "a VM that is given this card could not use it" \
    "see \`dmesg | grep -iE 'vfio|BAR'\` on the host; for BARs of many GiB, \"Above 4G decoding\" in its firmware"
}

# find_in_its_place ADDRESS - sets FOUND: what the guest has at that number of a slot behind a port, if nobody asked for it.
find_in_its_place() {
  local guest
  FOUND='is not in the VM'
  for guest in "${addresses[@]}"; do
    [[ ${guest##*.} == "${1##*.}" && $guest != 0000:00:* && -z ${taken[$guest]:-} ]] || continue
    case ${SEEN[$guest]} in
      1af4:* | 1b36:* | *:*" 0604"*) ;; # QEMU's own: virtio, its bridges
      *)
        taken[$guest]=yes
        FOUND="at $guest in the VM there is ${SEEN[$guest]%% *} instead"
        return
        ;;
    esac
  done
}

answer() { # VMID
  local function address guest id class bars bar index size separator='' comma
  printf '{"kernel":%s,"vmid":%s,"functions":[' "$(json_string "${KERNEL#/boot/vmlinuz-}")" "$1"
  for function in $FUNCTIONS; do
    address=${function%%=*} guest=${GUEST[${function%%=*}]}
    read -r id class bars <<<"${SEEN[$guest]}"
    printf '%s{"guest":"%s","address":"%s","id":"%s","class":"%s","bars":[' "$separator" "$guest" "$address" "$id" "$class"
    separator=, comma=''
    for bar in $bars; do
      IFS=: read -r index size _ <<<"$bar"
      printf '%s{"index":%s,"size":%s}' "$comma" "$index" "$size"
      comma=,
    done
    printf ']}'
  done
  printf ']}\n'
}

"$1" </dev/null
exit
