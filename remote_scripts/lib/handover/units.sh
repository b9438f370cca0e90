#!/usr/bin/env bash
# The units of systemd's in which a card's steps are done, and what is known of one that is still at work.
# Needs: handover/state, handover/card, handover/places
#
# Gives: in_unit SECONDS STEP, run_unit SECONDS STEP COMMAND... -> UNSURE; is_active UNIT; is_busy, await_step, is_loading. Of the card that was read.
STEPS=(step_claim step_unbind step_bind step_release step_attach step_nodes)
STEP_SECONDS=60
# Is there a step of which nobody knows whether it is still at work?
UNSURE=no

# in_unit SECONDS STEP - as run_unit, with a step of this card.
in_unit() { run_unit "$1" "$2" "$INSTALLED" "$2" "$CARD"; }

# run_unit SECONDS STEP COMMAND... - in a unit of systemd's, which is nobody's child here: one write that waits in the kernel for ever holds nobody. Status
# 124: it does wait: its unit is active. 125: systemd hasn't answered in time; what came of it is to be looked at, and UNSURE says whether it may still be at work.
run_unit() {
  local status=0 unit=homelab-handover-$CARD-$2
  bounded "$1" systemd-run -q --wait --collect --pipe --unit="$unit" "${@:3}" || status=$?
  ((status == 124)) || return "$status"
  OUTPUT="systemd has not said in time what came of it"
  is_active "$unit.service"
  case $? in
    0) return 124 ;;
    2) UNSURE=yes ;;
  esac
  return 125
}

# is_active UNIT... - is one of them? 0: yes, 1: no (systemctl: 3, or 4 where there is no such unit), 2: nobody knows.
is_active() {
  within "$ASK_SECONDS" systemctl is-active -q "$@"
  case $? in 0) return 0 ;; 3 | 4) return 1 ;; *) return 2 ;; esac
}

# is_loading - does somebody load a module, or wait for that in the kernel?
is_loading() { grep -qsx modprobe "$ROOT"/proc/[1-9]*/comm; }

# is_busy - is a step at work, or waiting in the kernel? Whoever touches the card meanwhile waits, too. Status as of is_active.
is_busy() {
  local services=("${STEPS[@]/#/homelab-handover-$CARD-}")
  is_active "${services[@]/%/.service}"
}

# await_step - a step of somebody who was killed may be about to end: for a minute at most.
await_step() {
  local step pid
  for step in "${STEPS[@]}"; do
    is_active "homelab-handover-$CARD-$step.service" || continue
    pid=$(exec_within "$ASK_SECONDS" systemctl show -P MainPID "homelab-handover-$CARD-$step.service" 2>/dev/null) || pid=''
    [[ ! $pid =~ ^[1-9][0-9]*$ ]] || bounded "$STEP_SECONDS" tail --pid="$pid" -f /dev/null || :
  done
}
