#!/usr/bin/env bash
# A node of the cluster that had its turn to restart and hasn't come back.
# Needs: cluster
#
# Gives: lift_noout_of NODE -> LIFTED (yes; none: there is nothing to lift; no: it couldn't be, or can't be told), lift_noout_of_absent.

# lift_noout_of NODE - it hasn't come back, and nobody knows whether it will: Ceph is to replace its disks. Its turn stays.
lift_noout_of() {
  local text disks=()
  LIFTED=none
  if ! text=$(exec_pve cat "$ROOT$TURN"); then
    pve test -L "$ROOT/etc/pve/local" && ! pve test -e "$ROOT$TURN" || LIFTED=no
    return 0
  fi
  find_turn_note node "$text"
  [[ $TURN_NOTED == "$1" ]] && ! is_member "$1" || return 0
  find_turn_note noout "$text"
  read -r -a disks <<<"$TURN_NOTED" || :
  ((${#disks[@]} > 0)) || return 0
  if allow_replacement "${disks[@]}"; then
    LIFTED=yes
    log "$1 isn't back: Ceph replaces its disks ${disks[*]} again (noout is unset)"
  else
    LIFTED=no
    log "note: $1 isn't back, and its disks ${disks[*]} still have Ceph's noout: ceph osd rm-noout ${disks[*]}"
  fi
}

# lift_noout_of_absent - of the node that has the turn, once its time is over.
lift_noout_of_absent() {
  local text until
  text=$(exec_pve cat "$ROOT$TURN") || return 0
  find_turn_note until "$text"
  until=$TURN_NOTED
  find_turn_note node "$text"
  [[ ! $until =~ ^[1-9][0-9]{0,11}$ ]] || (($(date +%s) < until)) || lift_noout_of "$TURN_NOTED"
}
