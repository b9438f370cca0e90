#!/usr/bin/env bash
# The PCI functions on the way to what is looked at now.
#
# Gives: carriers_in PATH -> CARRIERS; find_deepest PATH -> DEEPEST.
declare -A CARRIERS=() # addresses of the PCI functions on the way, of what is looked at now
declare -A SEEN=()     # block devices and interfaces that were looked at on this way: stacks may meet again
TROUBLE=''             # why the way could not be followed to its end

# carriers_in PATH - the PCI functions that a path in sysfs goes through; fails where there is none.
carriers_in() {
  local part parts status=1
  IFS=/ read -ra parts <<<"$1"
  for part in "${parts[@]}"; do
    [[ $part =~ ^[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$ ]] || continue
    CARRIERS[$part]=yes
    status=0
  done
  return "$status"
}

# find_deepest PATH - sets DEEPEST: the last PCI function on this path in sysfs; nothing where there is none.
find_deepest() {
  DEEPEST=''
  [[ ! $1 =~ .*/([0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])(/|$) ]] || DEEPEST=${BASH_REMATCH[1]}
}
