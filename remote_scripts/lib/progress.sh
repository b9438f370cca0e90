#!/usr/bin/env bash
# Where a long command is, for a person; and the log of this system that has all that such commands say.
# Needs: common, lines, proxy, run_dir, progress/where
#
# Gives: open_step_log TEXT, note_line TEXT, add_to_step_log INDENT TEXT [BYTES]; follow PIPE LOG WHAT; await_line PIPE SECONDS COMMAND... -> HEARD; tell_now_and_then WHAT, told_from_now;
#   drop_step_log. Variables: STEP_LOG; DOING (what is done, such as "CUDA toolkit 12.8"; by default the command's name).
STEP_LOG=/run/homelab/steps # in memory, and root's alone: nothing of a step that failed stays on a disk
STEP_LOG_BYTES=2097152
PROGRESS_SECONDS=${PROGRESS_SECONDS:-5}
DOING=${DOING:-}
TOLD=$SECONDS  # when a person was told something the last time
BEGAN=$SECONDS # when that began of which a person is told

# open_step_log TEXT - a heading.
open_step_log() {
  local now
  printf -v now '%(%Y-%m-%d %H:%M:%S)T' -1
  add_to_step_log '' "$now ${DOING:+$DOING: }$1"
}

# note_line TEXT - below that heading.
note_line() { add_to_step_log '  ' "$1"; }

# add_to_step_log INDENT TEXT [BYTES] - all that comes into this system's log comes by this: as text, without secrets, so many bytes at most; the
# log is made shorter as soon as it has STEP_LOG_BYTES: its end is kept. Scripts of several containers write at once: one waits for the
# other, but for a short line. That there is no room for it, or that the folder is somebody else's, stops nobody; nothing is written then.
add_to_step_log() {
  local TEXT turn out old size=0 unsaid=0 said=no log=$ROOT$STEP_LOG
  owns_run_dir || return 0
  masked "$2"
  text_of "$TEXT" "${3:-$LOG_BYTES}"
  if [[ -n $1 ]]; then
    [[ $TEXT != *$'\n' ]] || TEXT=$(printf '%s' "$TEXT")
    TEXT=$1${TEXT//$'\n'/$'\n'"$1"}
  fi
  if say_at_once "$TEXT"; then
    ((size >= STEP_LOG_BYTES)) || return 0
    said=yes
  fi
  (
    umask 077
    exec {turn}<"$RUN"
    flock -w 5 "$turn"
    exec {out}>>"$log"
    [[ $said == yes ]] || printf '%s\n' "$TEXT" >&"$out" || unsaid=${#TEXT}
    # Where it has written to: the log's length, without a program's start for each line.
    { [[ $said == no ]] && read -r _ size <"$PROCESS/fdinfo/$out"; } || size=$(stat -c %s "$log") || size=0
    if ((size + unsaid >= STEP_LOG_BYTES)); then
      # Without its first line, which may be half of one; with what comes meanwhile. Where there is no room for two of them, a new one begins.
      exec {old}<"$log"
      { tail -c $((STEP_LOG_BYTES / 2)) <&"$old" | sed 1d >"$log.old" && mv -f "$log.old" "$log" && cat <&"$old" >>"$log"; } ||
        { rm -f "$log.old" && printf '%s\n' "$TEXT" >"$log"; }
    fi
  ) 2>/dev/null || :
}

# say_at_once TEXT - for add_to_step_log: a short line goes in by one write at the log's end, which is whole whoever else writes (open(2), O_APPEND). `size` is the
# log's length then, or all that it may have where that isn't told. Status 1: it isn't in there, as it may be where somebody has made the log shorter meanwhile.
say_at_once() {
  local status=0
  [[ (-f $log || ! -e $log) && $1 != *$'\n'* ]] && ((${#1} < 1000)) || return 1
  umask 077 # the first line makes it
  {
    printf '%s\n' "$1" && { read -r _ size <"$PROCESS/fdinfo/1" || size=$STEP_LOG_BYTES; } && [[ $log -ef /dev/fd/1 ]]
  } 2>/dev/null >>"$log" || status=1
  umask 022 # as common.sh has set it
  return "$status"
}

# drop_step_log - where nothing of ours is left whose log it would be.
drop_step_log() {
  [[ -d $STATE ]] || rm -f "$ROOT$STEP_LOG" "$ROOT$STEP_LOG.old"
}

# await_line PIPE SECONDS COMMAND... - HEARD: the line that comes over PIPE, within so many seconds; COMMAND is called once a second meanwhile, and
# once when it has come. Status 1: the pipe has ended; 124: the time is up. HEARD has the part of a line that came before. A line longer than
# LINE_BYTES comes in several.
await_line() {
  local until=$((SECONDS + $2)) status part
  HEARD=''
  while :; do
    part='' status=0
    IFS= read -r -t 1 -n $((LINE_BYTES - ${#HEARD})) -u "$1" part || status=$?
    HEARD+=$part
    "${@:3}"
    ((status > 128)) || return "$status"
    ((SECONDS < until)) || return 124
  done
}

# told_from_now - something begins of which a person is told every PROGRESS_SECONDS, by tell_now_and_then WHAT.
told_from_now() { TOLD=$SECONDS BEGAN=$SECONDS; }

tell_now_and_then() {
  go_on "$1"
  tell_of "$1"
}

tell_of() {
  ((SECONDS - TOLD >= PROGRESS_SECONDS)) || return 0
  TOLD=$SECONDS
  log "$1: ${PROGRESS:-$((SECONDS - BEGAN)) s}"
}

# follow PIPE LOG WHAT - until the command that writes LOG has ended, and its status has come over PIPE: that is returned. What it says goes
# into this system's log, and every PROGRESS_SECONDS a person is told where it is.
follow() {
  local NOTED=0 REST='' NEWS='' WAITS=''
  told_from_now
  await_line "$1" 1000000000 look_on "$2" "$3" || HEARD=1 # its subshell was killed
  note_new "$2" whole
  [[ -z $NEWS ]] || exec {NEWS}<&-
  return "$HEARD"
}

look_on() {
  local PROGRESS=''
  note_new "$1" lines
  ((SECONDS - TOLD < PROGRESS_SECONDS)) || progress_of "$1" $((SECONDS - BEGAN))
  tell_of "$2" # what it follows ends by itself
}

# note_new LOG lines|whole - what LOG has more than NOTED bytes goes into this system's log, whole lines of it or all; of lines that were
# written over (dpkg's counting) the last state. NEWS: where LOG is read on; REST: what was read of it and isn't noted.
note_new() {
  local text='' waits
  {
    open_news "$1" || return 0
    # By bash itself, once a second and more often. What has a zero byte, or is much, programs read.
    if ! IFS= read -r -d '' -n $((ANSWER_BYTES + 1 - ${#REST})) -u "$NEWS" text; then
      [[ -n $text || $2 == whole ]] || return 0
      text=$REST$text
    else
      text_by_programs "$1"
    fi
    REST=''
    # The rest of its last line is still to come; but for the end of one that is too long nobody waits.
    if [[ $2 != whole && ($text == *$'\n'* || ${#text} -lt $ANSWER_BYTES) ]]; then
      find_last "$text"
      REST=$LAST
    fi
    text=${text:0:${#text}-${#REST}}
    [[ -n $text ]] || return 0
    NOTED=$((NOTED + ${#text}))
    [[ $text != *$'\r'* ]] || text=$(printf '%s' "$text" | sed -E 's/\r+$//; s/.*\r//')
    add_to_step_log '  ' "$text" "$ANSWER_BYTES"
  } 2>/dev/null || :
  # Who has apt's lock is worth a line at once.
  [[ $text == *'Waiting for cache lock'* ]] && waits=$(grep '^Waiting for cache lock' <<<"$text" | tail -n 1) || return 0
  [[ $waits == "$WAITS" ]] || log "$waits"
  WAITS=$waits
}

open_news() { [[ -n $NEWS ]] || { [[ -r $1 ]] && exec {NEWS}<"$1"; }; } # LOG

# text_by_programs LOG - for note_new, sets `text`: what LOG has after NOTED bytes, the end of much; NEWS goes on from there.
text_by_programs() {
  local size
  size=$(stat -c %s "$1")
  if ((size - NOTED > ANSWER_BYTES)); then
    note_line "… $((size - NOTED - ANSWER_BYTES)) bytes are left out here …"
    NOTED=$((size - ANSWER_BYTES))
  fi
  text=$(
    tail -c "+$((NOTED + 1))" "$1" | head -c $((size - NOTED)) | tr '\0' '?' || :
    printf x
  )
  text=${text%x}
  exec {NEWS}<&-
  exec {NEWS}<"$1"
  head -c "$size" <&"$NEWS" >/dev/null
}
