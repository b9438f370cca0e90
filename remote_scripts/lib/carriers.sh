#!/usr/bin/env bash
# What the host can't do without, and the PCI functions on the way to it: its file systems and swap, the network over which it is
# reached, its keyboards; and who has a graphics card open. Read from sysfs and /proc; nothing is changed.
# Needs: carriers/network, carriers/storage
#
# Gives: vital, as a key of read_host.sh's answer. What can't be told is said (`trouble`): the caller decides.

vital() {
  local separator=''
  printf ',"vital":['
  vital_storage
  vital_network
  vital_keyboards
  printf ']'
}

# vital_entry KIND NAME - one entry of what was collected; begins the next.
vital_entry() {
  local address addresses=()
  for address in "${!CARRIERS[@]}"; do addresses+=("$address"); done
  printf '%s{"kind":"%s","devices":' "$separator" "$1"
  json_list "${addresses[@]}"
  json_entry name "$2"
  json_entry trouble "$TROUBLE"
  printf '}'
  separator=,
  CARRIERS=() SEEN=() TROUBLE=''
}

vital_keyboards() {
  local path name
  [[ -r $ROOT/proc/bus/input/devices ]] || return 0
  # A keyboard has the handlers kbd and sysrq; a power button has the first alone. Virtual ones are nobody's.
  while IFS='|' read -r path name; do
    [[ $path != */virtual/* ]] || continue
    carriers_in "$path" || : # one at a port of its own (PS/2) stays
    vital_entry keyboard "$name"
  done < <(awk '
    /^N: Name=/ { name = $0; sub(/^N: Name="/, "", name); sub(/"$/, "", name) }
    /^S: Sysfs=/ { path = substr($0, 10) }
    /^H: Handlers=/ && / kbd/ && /sysrq/ { print path "|" name }' "$ROOT/proc/bus/input/devices")
}
