#!/usr/bin/env bash
# A start by hand, and an `up` of the same host: the steps of an `up` need the cards where they are, and a card that is taken between two of them
# would end it half-way. So a handover doesn't begin while a run holds the host (run_guard.sh), but for a VM that this run is about to start; and a
# run waits for one that has begun.
# Needs: run_dir
#
# Gives: begin_handover; await_handover SECONDS; run_at_work VMID -> AT_WORK. Variables: PASSES, HANDING.
PASSES=$RUN/passes

# begin_handover - as long as this process lives. Before it asks for a run: whoever comes first is seen by the other one.
begin_handover() {
  exec {HANDING}>>"$RUN/handing" && flock -w 10 "$HANDING"
}

# await_handover SECONDS - status 1: one is still at work.
await_handover() {
  local handing
  [[ -e $RUN/handing ]] || return 0
  exec {handing}>>"$RUN/handing"
  flock -w "$1" "$handing" || return 1
  exec {handing}>&-
}

# run_at_work VMID - does a run hold this host that doesn't start this VM? AT_WORK: whose.
run_at_work() {
  local held
  [[ -e $RUN/up ]] && exec {held}<"$RUN/up" || return 1
  # Shared: several may ask at once. A run that comes meanwhile waits for this moment.
  if flock -n -s "$held"; then
    exec {held}<&-
    return 1
  fi
  exec {held}<&-
  ! grep -qsxF -e "$1" "$PASSES" || return 1
  AT_WORK=$(head -n 1 "$RUN/up" 2>/dev/null) || AT_WORK=''
}
