#!/usr/bin/env bash
# What was left half-way is brought to an end, and containers that didn't start are tried again. Each step can be done again.
# Needs: handover/state, handover/card, handover/units, handover/numbers, handover/users, handover/follow, handover/driver, handover/back
#
# Gives: settle; start_owed. All have the lock, and S of the card that was read.
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
# didn't answer yet: tried again, for a while.
start_owed() {
  local why=''
  find_boot
  [[ ${S[state]} == HELD && -n ${S[containers]:-}${S[owed]:-} && ${S[boot]:-} == "$THIS_BOOT" ]] || return 0
  ((EPOCHSECONDS - ${S[since]:-0} < OWED_SECONDS)) || return 0
  ! is_stopping || return 0
  bind_again || return 0
  # Its modules may have come with other numbers.
  if is_on nvidia "$GPU" && { [[ -n ${S[owed]:-} ]] || numbers_moved "${S[numbers]:-}"; }; then
    in_unit 60 step_nodes || (($? != 124)) || { stuck "making its nodes" && return 0; }
  fi
  is_served || return 0
  restore_persistence
  follow_numbers
  S[owed]=''
  start_users || why=$REFUSED
  if [[ -z $why ]]; then
    say "it is with the host again, and its containers run"
    drop_state
  else
    save_state
  fi
}

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
