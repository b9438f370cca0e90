#!/usr/bin/env bash
# Where a host has what hands cards over.
# Needs: lines
#
# Gives: HANDOVER (what is going on with each card, and the story), INSTALLED, HOOK_FILE, HOOKED (VMs that were given the hookscript); FOLLOWER (what
#   brings lines of containers to the numbers that cards have now); find_noted FILE KEY -> AS_NOTED;
#   find_option VMID KEY -> OPTION.
HANDOVER=/var/lib/homelab/handover
INSTALLED=/usr/local/sbin/homelab-handover
HOOK_FILE=homelab-handover.sh
HOOKED=/var/lib/homelab/handover-hooks
FOLLOWER=/usr/local/sbin/homelab-card-nodes

# find_noted FILE KEY - sets AS_NOTED: of a card's state (state.sh), by another one than the program itself; nothing: it isn't noted.
find_noted() {
  find_first "$1" "^$2=(.*)$"
  AS_NOTED=$FIRST
}

# find_option VMID KEY - sets OPTION: of the VM's configuration, as it is for its next start.
find_option() {
  local line lines=()
  OPTION=''
  { mapfile -t lines <"$ROOT/etc/pve/qemu-server/$1.conf"; } 2>/dev/null || :
  for line in "${lines[@]}"; do
    [[ $line != '['* ]] || return 0
    [[ ! $line =~ ^$2:\ *(.*)$ ]] || OPTION+=${OPTION:+$'\n'}${BASH_REMATCH[1]}
  done
}
