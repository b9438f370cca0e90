#!/usr/bin/env bash
# Proves that a card can be passed through: a small VM gets it and says on its serial console what it sees; then the VM is
# removed, also after a failure. It starts the host's own kernel with an initramfs that is made here of what the host has.
# Needs: files, passthrough/vms, passthrough/seen, small_initramfs
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
  make_small_initramfs
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
  make_small_initramfs
  printf '{"kernel":%s,"initrd":%s,"append":%s}\n' "$(json_string "$KERNEL")" "$(json_string "$FOLDER/initrd.img")" \
    "$(json_string "$APPEND")"
}

report() {
  read_console
  compare
  answer null
}

# In place of the one in lib/files/undo.sh: what this run changed is a VM and a folder. `die` calls it, whatever happened.
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
  trap '' HUP INT TERM
  [[ -z $READER ]] || kill "$READER" 2>/dev/null || : # it may have ended
  await_watched
  die "the passthrough test run to its end" "it was stopped by $1" "it hasn't shown that the card works in a VM" "run \`pulumi up\` again"
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
  [[ -n $VMID ]] || VMID=$(exec_within "$ASK_SECONDS" pvesh get /cluster/nextid --output-format json | tr -d '"')
  VM=$VMID # before there is one: a signal may come while qm still makes it
  # No OVMF: QEMU hands the kernel of -kernel over itself, which SeaBIOS is enough for. cpu host: it has the host's address width,
  # that large BARs need. Only root@pam may set args, and raw hostpci: qm is root@pam.
  DOING="test VM" run_logged qm create "$VMID" --name "$NAME" --description "homelab proves passthrough with this VM, and removes it." \
    --machine q35 --ostype l26 --cpu host --memory 512 --balloon 0 --tablet 0 --onboot 0 --vga none "${hostpci[@]}" \
    --args "-kernel $KERNEL -initrd $FOLDER/initrd.img -append '$APPEND' -serial file:$FOLDER/serial -no-reboot" ||
    die "a test VM with the id $VMID" "$OUTPUT" "passthrough is proved inside a VM" \
      "choose another id, or correct what the message says, then run \`pulumi up\` again"
}

# run_vm - starts it and waits until it has said all, is off, or its time is up.
run_vm() {
  mkfifo -m 0600 "$ROOT$FOLDER/serial"
  # The console is a pipe: whoever reads it learns of the END, and of the VM's end, the moment they come.
  timeout "$TIMEOUT" sed -u "/^$MARK END /q" "$ROOT$FOLDER/serial" >"$ROOT$FOLDER/console" 2>/dev/null {LOCK}>&- &
  READER=$!
  log "starting a test VM with the card; it has $TIMEOUT s to say what it sees"
  DOING="test VM" run_logged qm start "$VM" || die "the test VM started with the card" "$OUTPUT" \
    "what keeps it from starting would keep every VM with this card from it" \
    "see \`dmesg | grep -i vfio\` on the host, correct the cause, and run \`pulumi up\` again"
  # Only to say how long that takes.
  DOING="test VM" run_logged tail -s 0.1 -f --pid="$READER" /dev/null
  wait "$READER" || log "the VM has not said all within $TIMEOUT s"
  READER=''
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

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
