#!/usr/bin/env bash
# What is going on with a card that a VM and the host's containers have in turn, and what is said of it.
# Needs: common, files/atomic, lock, run_dir, stopping, handover/places
#
# Gives: bounded SECONDS COMMAND... -> OUTPUT, drop_outputs; say TEXT; load_state CARD -> S; save_state KEY VALUE...; drop_state; find_boot -> THIS_BOOT.
#
# /var/lib/homelab/handover/NAME.state has lines KEY=VALUE, and is on the disk before the step that it tells of. Without it the card is with the
# host. state: DRAINING, FREE, DETACHED (on the way to the VM `vm`), VM, RETURNING; HELD (with the host, and `why` the VM didn't get it, or its
# containers weren't started), STUCK (a driver doesn't let go: only a reboot helps), DEAD (the card doesn't answer). boot: of the host; since:
# seconds; containers: those to be started again; owed: yes, while nothing but the card is back; taken: the numbers at the last take, where `numbers` are of an earlier one, which containers that are owed a start had; numbers, modules, persistence, units, d3cold (functions that may sleep so deep): as they were.
# `log` beside it is the story.
# How much of the story is kept, in bytes.
STORY_BYTES=131072
# For what was told to end, in seconds.
GRACE_SECONDS=5
declare -A S=()
# What commands have said, by files that are no longer read.
OUTPUTS=()

# bounded SECONDS COMMAND... - ends in time even where the command can't be killed, since it waits in the kernel. OUTPUT: the end of what it says, as text.
# Each has a file of its own, since what it leaves running may write on; all of them go at the end, by one program.
bounded() {
  local seconds=$1 pipe status='' file=$RUN/handover.$BASHPID.${#OUTPUTS[@]} TEXT
  exec {pipe}< <(
    # What goes on would have the locks, too, and what whoever calls this waits for the end of.
    [[ -z ${LOCK:-} ]] || exec {LOCK}>&-
    [[ -z ${HANDING:-} ]] || exec {HANDING}>&-
    exec 2>/dev/null
    within "$seconds" "${@:2}" >"$file" 2>&1 </dev/null
    printf '%s\n' "$?"
  )
  IFS= read -r -t $((seconds + GRACE_SECONDS)) -u "$pipe" status || status=124
  exec {pipe}<&-
  OUTPUT=''
  if { IFS= read -r -d '' -n 2001 OUTPUT <"$file"; } 2>/dev/null; then # it has more, or a zero byte
    { OUTPUT=$(tail -c 2000 "$file"); } 2>/dev/null || OUTPUT=''
  fi
  OUTPUTS+=("$file")
  cut_end "$OUTPUT"
  text_of "$TEXT"
  OUTPUT=$TEXT
  [[ $status =~ ^[0-9]+$ ]] || status=124
  return "$status"
}

# drop_outputs - when nothing is run any more. Also those of a handover that was killed.
drop_outputs() {
  local file pid
  for file in "$RUN"/handover.[1-9]*; do
    pid=${file##*/handover.} pid=${pid%%.*}
    [[ ! -e $file || $pid == "$BASHPID" ]] || kill -0 "$pid" 2>/dev/null || OUTPUTS+=("$file")
  done
  ((${#OUTPUTS[@]} == 0)) || rm -f "${OUTPUTS[@]}"
  OUTPUTS=()
}

# say TEXT - for the task's log, or the journal; and for the story.
say() {
  local story size='' text file=$ROOT$HANDOVER/log
  printf '%s: %s\n' "$CARD" "$1" 2>/dev/null || :
  need_dir "$ROOT$HANDOVER" 2>/dev/null || return 0
  { exec {story}>>"$file"; } 2>/dev/null || return 0
  # Where it has written to: the story's length, without a program's start for each line.
  { printf '%(%F %T)T %s: %s\n' -1 "$CARD" "$1" >&"$story" && read -r _ size <"$PROCESS/fdinfo/$story"; } 2>/dev/null || :
  exec {story}>&-
  ((${size:-0} <= STORY_BYTES)) || {
    text=$(tail -c $((STORY_BYTES / 2)) "$file") && write_atomically "$HANDOVER/log" 0600 printf '%s\n' "${text#*$'\n'}"
  } || :
}

load_state() { # CARD
  local line file=$ROOT$HANDOVER/$1.state
  S=()
  # By bash itself: a program that can't be started, for want of memory, is no card that is with the host.
  if [[ -e $file ]]; then
    while IFS= read -r line; do
      [[ $line == *=* ]] && S[${line%%=*}]=${line#*=}
    done <"$file"
  fi
  : "${S[state]:=HOST}"
}

# save_state KEY VALUE... - and the rest as it was. Status 1: it isn't on the disk.
save_state() {
  local key text=''
  while (($# > 1)); do
    [[ $1 != state || ${S[state]:-} == "$2" ]] || S[since]=$EPOCHSECONDS
    S[$1]=${2//$'\n'/; }
    shift 2
  done
  find_boot
  S[boot]=$THIS_BOOT
  [[ -n ${S[boot]} ]] || return 1 # it would count as an earlier boot's
  for key in state vm boot since why containers owed numbers taken modules persistence units d3cold; do text+="$key=${S[$key]:-}"$'\n'; done
  need_dir "$ROOT$HANDOVER" && write_atomically "$HANDOVER/$CARD.state" 0600 printf '%s' "$text"
}

drop_state() {
  remove_file "$HANDOVER/$CARD.state"
  S=([state]=HOST)
}

# find_boot - sets THIS_BOOT; empty: that can't be read.
find_boot() {
  THIS_BOOT=''
  IFS= read -r THIS_BOOT <"$ROOT/proc/sys/kernel/random/boot_id" || :
}
