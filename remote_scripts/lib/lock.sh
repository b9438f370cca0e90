#!/usr/bin/env bash
# One writer at a time; and commands that are run under its lock.
# Needs: common, files/undo, run_dir, progress
#
# Gives: get_lock SECONDS -> LOCK; need_run_dir, take_lock; watched LOG COMMAND..., await_watched; holding_lock LOG COMMAND...;
#   run_logged COMMAND... -> OUTPUT. Variables: DOING (progress.sh).

# How long what changes something may take, in seconds: an initramfs for each kernel on a slow disk takes minutes.
RUN_SECONDS=1800

# get_lock SECONDS - waits that long, and says so; status 1: another run has it still. Whoever has it has noted in it the run that has started it.
get_lock() {
  local until=$((SECONDS + $1)) left
  exec {LOCK}>>"$RUN/lock"
  flock -n "$LOCK" && note_lock && return 0
  told_from_now
  while left=$((until - SECONDS)) && ((left > 0)); do
    flock -w $((left < PROGRESS_SECONDS ? left : PROGRESS_SECONDS)) "$LOCK" && note_lock && return 0
    tell_now_and_then "waiting for another run on this system"
  done
  exec {LOCK}>&-
  LOCK=''
  return 1
}

note_lock() { { printf '%s\n' "$OF_RUN" >"$RUN/lock"; } 2>/dev/null || :; }

# need_run_dir - or the script ends.
need_run_dir() {
  local said
  ! make_run_dir || return 0
  if is_there "${RUN#"$ROOT"}"; then
    die "a folder of root's own, /run/homelab, for the lock and logs" \
      "something else has that name: $(stat -c '%F, %U:%G, mode %a' "$RUN" 2>&1)" \
      "any user who can write to it could keep this program from running" "find out who made /run/homelab, and move it away"
  fi
  said=$(mkdir -m 0700 "$RUN" 2>&1) || die "to make the folder /run/homelab, for the lock and logs" "${said:-no reason given}" \
    "without the lock, two runs at once could write over each other; nothing was changed" \
    "correct what the message names (often: no room: \`df /run\`), then run the same again"
}

# take_lock - a run whose client was killed goes on to its end, and the next one waits for it. What a run that was itself cut short has
# left lying about is cleared away.
take_lock() {
  need_run_dir
  get_lock "${LOCK_TIMEOUT:-900}" || die "to be the only one changing this host" \
    "another run still holds /run/homelab/lock after ${LOCK_TIMEOUT:-900} s" \
    "two runs at once would write over each other" "wait for it, or look at it with: fuser -v /run/homelab/lock"
  clear_leftovers
}

# holding_lock LOG COMMAND... - in a subshell: that one has the lock until the command has ended, also where this script is killed meanwhile. The command
# itself hasn't: what it leaves running would have it for ever. (What it says goes to LOG in there, so that a trap of this script still has
# its own standard output.)
holding_lock() { "${@:2}" >"$1" 2>&1 </dev/null {LOCK}>&-; }

# watched LOG COMMAND... - the command, with its status; what it says goes to LOG first, so that it outlives a client that is gone. Meanwhile
# `follow` says where it is. Over the pipe nothing comes but its status.
WATCHED=''
watched() {
  local status=0
  exec {WATCHED}< <(
    holding_lock "$@" && status=0 || status=$?
    printf '%s\n' "$status" 2>/dev/null || :
  )
  follow "$WATCHED" "$1" "${DOING:-${2##*/}}" || status=$?
  exec {WATCHED}<&-
  WATCHED=''
  return "$status"
}

# await_watched - in a signal's trap: the command that `watched` has started is still at work.
await_watched() { [[ -z $WATCHED ]] || read -r -u "$WATCHED" _ || :; }

# run_logged COMMAND... - OUTPUT is the end of what it says, which a person gets to see where it fails; this system's log has all of it.
run_logged() {
  local status=0 file=$RUN/log lines TEXT TIME
  { : >"$file"; } 2>/dev/null || file=/dev/null # /run is full: the command may work all the same
  open_step_log "$*"
  time_for "$RUN_SECONDS"
  DOING=${DOING:-${1##*/}} watched "$file" within "$TIME" "$@" || status=$?
  ((status != 124 && status != 137)) || printf '%s: given up after %s s
' "$*" "$TIME" >>"$file"
  OUTPUT=''
  # By bash itself. What has a zero byte, or is much, a program reads.
  if { IFS= read -r -d '' -n $((LOG_BYTES + 1)) OUTPUT <"$file"; } 2>/dev/null; then
    OUTPUT=$(tail -c "$LOG_BYTES" "$file" 2>/dev/null) || OUTPUT=''
  fi
  cut_end "$OUTPUT"
  mapfile -t lines < <(printf '%s\n' "$TEXT") # a here-string may need a file, for which there may be no room
  printf -v OUTPUT '%s\n' "${lines[@]:${#lines[@]}>5?-5:0}"
  OUTPUT=${OUTPUT%$'\n'}
  ((status == 0)) || [[ -z $OUTPUT ]] || log "$OUTPUT"
  [[ $file == /dev/null ]] || rm -f "$file" # what the command leaves running may write on: not into the next one's
  return "$status"
}
