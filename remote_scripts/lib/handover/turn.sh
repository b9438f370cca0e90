#!/usr/bin/env bash
# A start by hand, and an `up` of the same host: the steps of an `up` need the cards where they are, and a card that is taken between two of them
# would end it half-way. So a handover doesn't begin while a run holds the host (run_guard.sh), but for a VM that this run is about to start; and a
# run waits for one that has begun.
# Needs: common, run_dir
#
# Gives: await_handover SECONDS; note_pass VMID WHO, find_passes WHO -> PASSED, drop_other_passes WHO.
#
# A pass is a line VMID WHO. It counts while the run of that name holds the host: so a run whose connection was cut has its passes again when it comes
# back, and no other run has them.
PASSES=$RUN/passes

# note_pass VMID WHO - status 1: it can't be noted.
note_pass() {
  local passes
  make_run_dir && exec {passes}>>"$PASSES" && flock -w 10 "$passes" && printf '%s %s\n' "$1" "$2" >&"$passes"
}

# find_passes WHO - sets PASSED: the VMs that this run has let through so far.
find_passes() {
  local vmid who
  PASSED=()
  while read -r vmid who; do
    [[ $who != "$1" ]] || PASSED+=("$vmid")
  done 2>/dev/null <"$PASSES" || :
}

# drop_other_passes WHO - where there are some: whoever asks while it is written would find none at all.
drop_other_passes() {
  local passes vmid kept=''
  [[ -s $PASSES ]] || return 0
  { exec {passes}>>"$PASSES" && flock -w 10 "$passes"; } || return 0
  find_passes "$1"
  if ((${#PASSED[@]} < $(wc -l <"$PASSES"))); then
    for vmid in "${PASSED[@]}"; do kept+="$vmid $1"$'\n'; done
    printf '%s' "$kept" >"$PASSES" || log "/run is full: which VMs may take their cards during this run is not noted"
  fi
  exec {passes}>&-
}

# await_handover SECONDS - status 1: one is still at work.
await_handover() {
  local handing
  [[ -e $RUN/handing ]] || return 0
  exec {handing}>>"$RUN/handing"
  flock -w "$1" "$handing" || return 1
  exec {handing}>&-
}
