#!/usr/bin/env bash
# One writer at a time; and commands that are run under its lock.
# Needs: common, files/undo
#
# Gives: make_run_dir; get_lock SECONDS -> LOCK; take_lock; holding_lock LOG COMMAND...; run_logged COMMAND... -> OUTPUT.
#
# The lock and the logs lie where root alone can make a file: in a folder that everybody may write to (/run/lock), anybody could hold
# the lock for ever.
RUN=$ROOT/run/homelab
# How long what changes something may take, in seconds: an initramfs for each kernel on a slow disk takes minutes.
RUN_SECONDS=1800

# make_run_dir - fails where somebody else's folder, or a link, has its name.
make_run_dir() {
  [[ -d $ROOT/run ]] || mkdir "$ROOT/run"
  mkdir -m 0700 "$RUN" 2>/dev/null || [[ -d $RUN && ! -L $RUN && -O $RUN ]] || return 1
  chmod 0700 "$RUN"
}

# get_lock SECONDS - waits that long; status 1: another run has it still.
get_lock() {
  exec {LOCK}>"$RUN/lock"
  flock -w "$1" "$LOCK" && return 0
  exec {LOCK}>&-
  LOCK=''
  return 1
}

# take_lock - a run whose client was killed goes on to its end, and the next one waits for it. What a run that was itself cut short has
# left lying about is cleared away.
take_lock() {
  make_run_dir || die "a folder of root's own, /run/homelab, for the lock and logs" \
    "something else has that name: $(stat -c '%F, %U:%G, mode %a' "$RUN" 2>&1)" \
    "any user who can write to it could keep this program from running" "find out who made /run/homelab, and move it away"
  get_lock "${LOCK_TIMEOUT:-900}" || die "to be the only one changing this host" \
    "another run still holds /run/homelab/lock after ${LOCK_TIMEOUT:-900} s" \
    "two runs at once would write over each other" "wait for it, or look at it with: fuser -v /run/homelab/lock"
  clear_leftovers
}

# holding_lock LOG COMMAND... - a subshell has the lock until the command has ended, also where this script is killed meanwhile. The command
# itself hasn't: what it leaves running would have it for ever. (What it says goes to LOG in there, so that a trap of this script still has
# its own standard output.)
holding_lock() (
  "${@:2}" >"$1" 2>&1 </dev/null {LOCK}>&-
  exit
)

# run_logged COMMAND... - its output goes to a file first, so that it outlives a client that is gone; OUTPUT is its tail.
run_logged() {
  local status=0 file=$RUN/log
  (: >"$file") 2>/dev/null || file=/dev/null # /run is full: the command may work all the same
  holding_lock "$file" within "$RUN_SECONDS" "$@" || status=$?
  ((status != 124 && status != 137)) || printf '%s: given up after %s s
' "$*" "$RUN_SECONDS" >>"$file"
  OUTPUT=$(tail -n 5 "$file" 2>/dev/null | tail -c "$LOG_BYTES") || OUTPUT=''
  [[ ! -s $file ]] || log "$(of_file "$file")"
  [[ $file == /dev/null ]] || rm -f "$file"
  return "$status"
}
