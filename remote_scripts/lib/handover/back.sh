#!/usr/bin/env bash
# A card comes back to the host, from wherever it was left, and its containers are started again. Each step can be done again.
# Needs: handover/state, handover/card, handover/units, handover/numbers, handover/holders, handover/users, handover/staying, handover/refuse, handover/driver
#
# Gives: give_back [WHY]; stuck STEP; settle; start_owed, is_late. All have the lock, and S of the card that was read.
# How long containers that didn't start are tried again.
OWED_SECONDS=1800

# settle - brings what was left half-way to an end: after a hook or a service that was killed, a start that failed (for which Proxmox VE calls nobody), a
# reboot of the host. What is at rest, and a VM that runs, stays.
settle() {
  local busy=0
  find_boot
  if [[ ${S[state]} != HOST && ${S[boot]:-} != "$THIS_BOOT" ]]; then
    settle_after_boot
    return
  fi
  case ${S[state]} in
    HOST | HELD | DEAD) return 0 ;;
    # A VM that runs has its card for days.
    VM) is_over || return 0 ;;
    STUCK) ! is_loading || return 0 ;;
  esac
  [[ ${S[state]} == STUCK ]] || ! is_busy || await_step
  is_busy || busy=$?
  # A write that waits in the kernel may have been begun by whoever was killed. Where systemd doesn't say whether there is one, it is asked again later.
  if ((busy != 1)); then
    [[ $busy != 0 || ${S[state]} == STUCK ]] || ((EPOCHSECONDS - ${S[since]:-0} < 120)) || stuck "a step on its way"
    return 0
  fi
  case ${S[state]} in
    DRAINING | FREE | DETACHED) give_back "the way to VM ${S[vm]} was cut short" ;;
    STUCK) give_back "what waited in the kernel has come to an end" ;;
    VM) give_back ;;
    RETURNING) give_back "${S[why]:-}" ;;
  esac
}

# start_owed - containers that didn't start for a reason that passes, such as a storage that isn't there yet, and what came to nothing with a driver that
# didn't answer yet: tried again, for a while. Only who has numbers of before is tried for as long as that is so: it may be locked by a backup.
start_owed() {
  local why='' lacks=no late=no
  find_boot
  [[ ${S[state]} == HELD && -n ${S[containers]:-}${S[staying]:-}${S[owed]:-} && ${S[boot]:-} == "$THIS_BOOT" ]] || return 0
  ! is_late || late=yes
  [[ $late == no || -n ${S[staying]:-} ]] || return 0
  ! is_stopping || return 0
  if [[ $late == yes ]]; then
    is_served || return 0
  else
    bind_again || return 0
    if [[ -n ${S[staying]:-} ]] && is_on nvidia "$GPU" && numbers_lack; then
      lacks=yes
      load_driver || return 0
    fi
  fi
  # Its modules may have come with other numbers.
  if is_on nvidia "$GPU" && { [[ -n ${S[owed]:-} || $lacks == yes ]] || numbers_moved "${S[numbers]:-}"; }; then
    in_unit 60 step_nodes || (($? != 124)) || { stuck "making its nodes" && return 0; }
  fi
  is_served || return 0
  [[ $late == yes ]] || restore_persistence
  follow_numbers
  S[owed]=''
  settle_staying || why=$REFUSED
  # Who has gone off just now is started now.
  if is_late; then
    strike_off
    [[ -z ${S[containers]:-} ]] || why+="${why:+; }containers ${S[containers]} have not started"
  else
    start_users || why+="${why:+; }$REFUSED"
  fi
  if [[ -z $why ]]; then
    [[ $late == no ]] || restore_persistence
    say "it is with the host again, and its containers run"
    drop_state
  else
    save_state
  fi
}

# strike_off - of S[containers], those that run, or are gone.
strike_off() {
  local id left=''
  for id in ${S[containers]:-}; do is_gone "$id" || container_runs "$id" || left+="${left:+ }$id"; done
  S[containers]=$left
}

# is_late - is what came to nothing no longer tried?
is_late() { ((EPOCHSECONDS - ${S[since]:-0} >= OWED_SECONDS)); }

# settle_after_boot - the drivers have taken everything anew, and onboot decides which containers run. A dead card that is still there and doesn't answer stays
# what it was, as of then: it is no longer away from a driver that has been loaded since. One that was taken out, or is another now, is nobody's concern.
settle_after_boot() {
  if [[ ${S[state]} == DEAD ]] && is_that_card && ! is_alive; then return; fi
  say "the host has been started since (it was ${S[state]}): the card is with it"
  drop_state
}

# is_over - has the VM that took it ended, or not begun? Whoever can't tell says no. A start holds the VM's lock from before the hook to its end.
is_over() {
  local text lock request=$ROOT/run/qemu-server/${S[vm]}.reboot
  # Before the question: a start that has come to its end meanwhile is seen by that.
  lock=$ROOT/run/lock/qemu-server/lock-${S[vm]}.conf
  [[ ! -e $lock ]] || flock -n "$lock" true || return 1
  text=$(exec_within "$ASK_SECONDS" qm status "${S[vm]}" 2>/dev/null) || { [[ -d $ROOT/etc/pve/qemu-server && ! -e $ROOT/etc/pve/qemu-server/${S[vm]}.conf ]] && return 0 || return 1; }
  [[ $text == 'status: stopped' ]] || return 1
  # Of a VM that ran: the backup starts it again.
  find_option "${S[vm]}" lock
  [[ $OPTION != backup ]] || return 1
  # Between the two halves of `qm reboot`.
  [[ ! -e $request ]] || ((EPOCHSECONDS - $(stat -c %Y "$request") > 120))
}

# give_back [WHY] - WHY: a VM didn't get it. Status 1: it isn't back, and the state says what it is.
give_back() {
  local why=${1:-} ctid function
  ! is_stopping || return 1
  [[ $UNSURE == no ]] || { say "whether its last step is still at work can't be told: it is brought to an end when it can" && return 1; }
  for ctid in ${S[containers]:-} ${S[asked]:-}; do
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
  settle_staying || why="${why:+$why; }$REFUSED"
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
