#!/usr/bin/env bash
# A card comes back to the host, from wherever it was left, and its containers are started again. Each step can be done again.
# Needs: handover/state, handover/card, handover/units, handover/numbers, handover/holders, handover/users, handover/follow, handover/refuse, handover/driver
#
# Gives: give_back [WHY]; stuck STEP. Both have the lock, and S of the card that was read.

# give_back [WHY] - WHY: a VM didn't get it. Status 1: it isn't back, and the state says what it is.
give_back() {
  local why=${1:-} ctid function
  ! is_stopping || return 1
  [[ $UNSURE == no ]] || { say "whether its last step is still at work can't be told: it is brought to an end when it can" && return 1; }
  for ctid in ${S[containers]:-}; do
    find_stop_unit "$ctid"
    is_active "$STOP_UNIT.service"
    (($? == 1)) || { say "container $ctid is still going off: it is started after that" && return 1; }
  done
  if ! all_home; then
    is_alive || {
      if (($? == 1)); then
        sink DEAD "its configuration space doesn't read as it should after VM ${S[vm]:-}: no driver is let near it, and its containers stay off"
      else
        say "whether it answers can't be told now: it stays where it is until that can be read"
      fi
      return 1
    }
    leave_vfio || return 1
    save_state state RETURNING why "$why" || say "its state can't be noted: ${OUTPUT:-the disk is full}"
    in_unit 60 step_release || {
      if (($? == 124)); then stuck "taking it from vfio-pci"; else say "it can't be taken from vfio-pci yet: $OUTPUT"; fi
      return 1
    }
    for function in "${FUNCTIONS[@]}"; do
      ! is_on vfio-pci "$function" || { say "it can't be taken from vfio-pci yet: $function is still there" && return 1; }
    done
    load_driver || return 1
    attach || case $? in
      124) stuck "giving it to NVIDIA's driver" && return 1 ;;
      125) if [[ $UNSURE != no ]] || ! is_on nvidia "$GPU"; then say "$OUTPUT" && return 1; fi ;;
    esac
  else
    load_driver || return 1
  fi
  serve_again "$why"
}

# all_home - is every function with a driver of the host's, or with none as before?
all_home() {
  local function
  is_on nvidia "$GPU" || return 1
  for function in "${FUNCTIONS[@]}"; do ! is_on vfio-pci "$function" || return 1; done
  [[ ${S[state]} == DRAINING || ${S[state]} == FREE ]] || in_unit 60 step_attach || :
}

# leave_vfio - QEMU must have let go: to take a device from vfio-pci while it has it waits for its end.
leave_vfio() {
  find_group_nodes
  ((${#GROUP_NODES[@]} > 0)) || return 0
  # shellcheck disable=SC2046 # numbers hold no spaces
  find_holders "${GROUP_NODES[0]}" $(stat -L -c '%t:%T' "${GROUP_NODES[@]}") || {
    say "it stays where it is for now: $LOOK_FAILED"
    return 1
  }
  ((${#HOLDERS[@]} == 0)) || {
    say "it stays where it is for now: ${HOLDERS[*]} still has it"
    return 1
  }
}

# serve_again WHY - the card is with its driver: it is proved, and everybody has it as before.
serve_again() {
  local why=$1 found
  let_clients_in || : # asked again below
  in_unit 60 step_nodes || (($? != 124)) || { stuck "making its nodes" && return 1; }
  OUTPUT='' S[owed]=yes
  if ! is_served; then
    found="NVIDIA's driver doesn't get along with it (driver: $(card_driver "$GPU"); nvidia-smi: ${OUTPUT:-no answer}); its containers stay off"
    is_alive || (($? != 1)) || { sink DEAD "$found" && return 1; }
    sink HELD "${why:+$why; }$found until it answers"
    return 1
  fi
  S[owed]=''
  restore_persistence
  follow_numbers
  [[ $MOVED == no ]] || say "its nodes have other numbers than before: ${S[numbers]} -> $NUMBERS"
  start_users || why="${why:+$why; }$REFUSED"
  if [[ -n $why ]]; then sink HELD "$why"; else
    say "it is with the host again"
    drop_state
  fi
}

# sink STATE WHY - where it stays.
sink() {
  say "$1: $2"
  save_state state "$1" why "$2" || say "that can't be noted on the disk"
}

stuck() { sink STUCK "$1 has not come to an end: the driver waits in the kernel, and as a rule only a reboot of the host ends that. Nothing is tried while it waits"; }
