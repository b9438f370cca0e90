#!/usr/bin/env bash
# How the roll-back runs its steps, so that none of them can stop it: each in a process of its own, which is ended in time.
# Needs: common, lock
#
# Gives: step SECONDS COMMAND [ARGUMENT...]; hold_lock. Only for a program that is a file and runs a function by its name (rollback.sh).

# step SECONDS COMMAND [ARGUMENT...] - a function of this program in a bash of its own (where an error ends it), killed after that time with all that it started.
step() {
  local status=0 step_words=("${@:2}")
  [[ $2 == sync ]] || step_words=(bash "$0" "${step_words[@]}")
  (
    trap - PIPE # a bash that was started with it ignored can't have its own commands obey it (AS_BY_DEFAULT)
    exec timeout -s KILL "${STEP_SECONDS:-$1}" "${step_words[@]}" </dev/null
  ) || status=$?
  ((status == 0)) || [[ $2 == judge || $2 == is_* || $2 == runs_* ]] || log "step failed with status $status (137: it hung): ${*:2}"
  return "$status"
}

# hold_lock - so that nobody writes meanwhile; but somebody who hangs must not keep us from it.
hold_lock() {
  { make_run_dir && get_lock "${LOCK_TIMEOUT:-60}"; } || log "another run holds the lock: going on without it"
}
