#!/usr/bin/env bash
# The folder of the lock, of logs, and of who is at work here, where root alone can make a file: in one that everybody may write to (/run/lock), anybody could hold
# the lock for ever, or lead what is written elsewhere.
#
# Gives: make_run_dir, owns_run_dir; go_on. Variables: RUN. Takes, of common, which every script has: die, TIME_LIMIT, ENDS.
RUN=$ROOT/run/homelab

# make_run_dir - fails where somebody else's folder, or a link, has its name.
make_run_dir() {
  [[ -d $ROOT/run ]] || mkdir "$ROOT/run"
  owns_run_dir || { mkdir -m 0700 "$RUN" 2>/dev/null && return; } || owns_run_dir || return 1
  chmod 0700 "$RUN"
}

owns_run_dir() { [[ -d $RUN && ! -L $RUN && -O $RUN ]]; }

# The run that has started this step, as layers/run_guard.py notes it; empty: none holds this system (a guest's is none of its business), or this is no step of one.
OF_RUN=''
((TIME_LIMIT == 0)) || { IFS= read -r OF_RUN <"$RUN/up"; } 2>/dev/null || OF_RUN=''

# go_on [WHAT FOR] - wherever a script waits, and so may end: it does if its time is up, or if the run that has started it has ended or was cancelled.
go_on() {
  local now=''
  ((SECONDS < ENDS)) || die "this step done within $TIME_LIMIT s" "it still waits${1:+: $1}" "it ends here, so that the next run finds it ended; what it has changed is put back" \
    "see what it waits for, then run \`pulumi up\` again. What takes longer by nature: timeouts.script"
  [[ -n $OF_RUN ]] || return 0
  { IFS= read -r now <"$RUN/up"; } 2>/dev/null || :
  [[ $now != "$OF_RUN" ]] || return 0
  OF_RUN=''
  die "the run at work that has started this step" "it has ended, or was cancelled" "nobody waits for this step any more, and another run may begin; what it has changed is put back" \
    "run \`pulumi up\` again, which begins it anew"
}
