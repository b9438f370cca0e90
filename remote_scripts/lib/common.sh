#!/usr/bin/env bash
# Shared by every script that runs on a host: how it ends, what it says, how long it waits.
# Needs: text, proxy
#
# Gives: log TEXT... (one that begins with `note: ` is among the messages at the end of the run); die WANTED FOUND WHY NEXT; time_for SECONDS -> TIME; within SECONDS COMMAND..., exec_within; answer_of SECONDS BYTES COMMAND... -> ANSWER;
#   read_kernel_log, kernel_says; full_places. Variables: ALSO_PUT_BACK.
# Takes, of files/undo.sh, which every script has: undo, NOT_PUT_BACK.
#
# A script travels over SSH as standard input: assignments of its arguments, what it needs of this library, the script. Contract:
#   stdout  exit 0: one line of JSON. Any other exit: the message for the person (see `die`).
#   stderr  a log for people.
# ROOT prefixes every path, so that a test can run a script on a folder; on a host it is empty. TIME_LIMIT: after so many seconds this script's process group
#   is killed (homelab/remote/scripts.py, limited); 0: never.
set -Eeuo pipefail
umask 022
export LC_ALL=C
unset TMOUT # some hosts set it for whoever logs in: `read` would end after so many seconds
ROOT=${ROOT:-}
TIME_LIMIT=${TIME_LIMIT:-0}

# Of the signals that follow, one that was ignored when this script was started (systemd ignores PIPE for a service; what a script starts, all
# three) no shell can have obeyed again: `env` can. What /proc doesn't tell counts as ignored.
AS_BY_DEFAULT=(env '--default-signal=TERM,HUP,PIPE')
PROCESS=/proc/self # of this very bash, so not below ROOT
IFS= read -rd '' IGNORED 2>/dev/null <"$PROCESS/status" || :
[[ ! ${IGNORED:-} =~ SigIgn:[[:space:]]*([0-9a-f]+) ]] || ((16#${BASH_REMATCH[1]} & 0x5001)) || AS_BY_DEFAULT=()

# A client that dies or cancels in the middle must not stop us between two files: a run goes on to its end.
trap '' PIPE HUP TERM
trap 'failed_at="line $LINENO: $BASH_COMMAND"' ERR
trap 'status=$?; [[ $status == 0 || $status == 99 ]] || unexpected "$status"; [[ $status != 99 ]] || exit 1' EXIT

# as_it_comes - to standard error, as text without secrets, whatever comes on standard input. Most scripts say a few plain lines, for which no program is
# started: `read` takes no byte behind a line's end from a pipe. A line that isn't plain, or has no end, and all after it go through sed.
as_it_comes() {
  local line end number
  exec >&2
  for ((number = 0; number < 30; number++)); do
    end=$'\n'
    IFS= read -r -n 4096 line || end=''
    ((${#line} < 4096)) || end=''
    [[ -n $line || -n $end ]] || return 0
    if [[ -z $end || $line == *[!$'\t'\ -~]* || $line == *://*@* ]]; then
      { printf '%s%s' "$line" "$end" && exec cat; } | sed -u -E "$AS_TEXT"$'\n'"$NO_SECRETS"
      return
    fi
    printf '%s\n' "$line" 2>/dev/null || : # nobody may be there to read it
  done
  exec sed -u -E "$AS_TEXT"$'\n'"$NO_SECRETS"
}

# Whatever else the commands of this script say, too. (Nothing is left to be waited for: it ends with the last who writes.)
exec 2> >(as_it_comes)

# How long a question to a program of this host may take, in seconds: one that hangs (a dead NFS mount, a card that is gone) must not
# hide what is known without it.
ASK_SECONDS=20

# When this script has to come to an end by itself (SECONDS): the last tenth of its time, and some seconds, are for its message, and for putting back.
ENDS=$((TIME_LIMIT ? SECONDS + TIME_LIMIT * 9 / 10 - 3 : 2 ** 40))

# time_for SECONDS -> TIME: as long, but for ENDS.
time_for() {
  TIME=$1
  ((ENDS - SECONDS > ${1%.*})) || TIME=$((ENDS > SECONDS ? ENDS - SECONDS : 1))
}

# within SECONDS COMMAND... - with an end: status 124 after that time, or by ENDS, as it has a process group of its own. What these scripts ignore, their
# children would, too.
# exec_within - the same where nothing else is to follow in a subshell, as in $(exec_within ...): it becomes the command, and no second subshell is made.
within() (exec_within "$@")

exec_within() {
  local TIME
  time_for "$1"
  set -- "$TIME" "${@:2}"
  trap - PIPE HUP TERM
  exec timeout -k 2 "$1" "${AS_BY_DEFAULT[@]}" "${@:2}"
}

# answer_of SECONDS BYTES COMMAND... - sets ANSWER: what it has said on standard output when it ends, at most so many bytes of it, without zero
# bytes and empty lines at the end. Its status is returned. For what runs in a guest: a process there that goes on and has our pipe (or fills
# it) holds nobody, which it would in a pipeline and in $(...): these wait for the last who writes.
answer_of() {
  local pipe status='' TEXT
  ANSWER=''
  exec {pipe}< <(
    [[ -z ${LOCK:-} ]] || exec {LOCK}>&- # what goes on would have the host's lock, too
    within "$1" "${@:3}" && status=0 || status=$?
    printf '\4%s\n' "$status" 2>/dev/null || :
  )
  if IFS= read -r -d $'\4' -n "$2" -u "$pipe" ANSWER && ((${#ANSWER} < $2)); then
    IFS= read -r -n 4 -t 5 -u "$pipe" status || :
    [[ $status =~ ^[0-9]+$ ]] || status=1
  fi
  exec {pipe}<&-
  cut_end "$ANSWER"
  ANSWER=$TEXT
  return "${status:-0}"
}

# kernel_says - the kernel's log since it booted, whole where the journal has it. read_kernel_log: for all who ask after it, in one reading.
KERNEL_TEXT=''
kernel_says() {
  local text
  [[ -z $KERNEL_TEXT ]] || { printf '%s' "$KERNEL_TEXT" && return 0; }
  text=$(exec_within "$ASK_SECONDS" journalctl -k -b -q --no-pager -o short-monotonic 2>/dev/null) || text=''
  [[ -n $text ]] || text=$(exec_within "$ASK_SECONDS" dmesg 2>/dev/null) || text=''
  printf '%s\n' "$text"
}

read_kernel_log() { [[ -n $KERNEL_TEXT ]] || KERNEL_TEXT=$(kernel_says)$'\n'; }

log() {
  local TEXT
  masked "$*"
  text_of "$TEXT" "$LINE_BYTES"
  printf '%s\n' "$TEXT" >&2 2>/dev/null || :
  [[ $TEXT != 'note: '* ]] || keep_note
}

# keep_note - TEXT is what a person must still read when all is done, and pulumi-command shows what a script says only while it runs: whoever holds this host for
# the run tells it (layers/run_guard.py).
keep_note() {
  [[ -f $ROOT/run/homelab/notes && -O $ROOT/run/homelab && ! -L $ROOT/run/homelab ]] || return 0
  printf '%s\n' "${TEXT//$'\n'/ }" 2>/dev/null >>"$ROOT/run/homelab/notes" || :
}

# A function: what a script has set besides files, and puts back with them, wherever it ends.
ALSO_PUT_BACK=:

# die WANTED FOUND WHY NEXT - the one message a person gets; then everything this run changed is put back. The message comes first:
# it is out whatever becomes of the rest.
die() {
  message "$@"
  put_back_all
  exit 99 # turned into 1 by the EXIT trap: the message is out
}

message() {
  local TEXT part parts=()
  for part in "$@"; do
    masked "$part"
    text_of "$TEXT" "$LOG_BYTES"
    parts+=("$TEXT")
  done
  printf 'wanted: %s\nfound:  %s\nwhy:    %s\nnext:   %s\n' "${parts[@]}" || : # nobody may be there to read it
}

unexpected() {
  message "every command of this script to succeed" "exit status $1 at ${failed_at:-an unknown place}$(full_places)" \
    "going on would leave the host half configured; what this run changed is put back" \
    "see the log above, mend it, and run \`pulumi up\` again"
  put_back_all
}

put_back_all() {
  ENDS=$((SECONDS + 600))
  "$ALSO_PUT_BACK" || :
  undo || :
  [[ -z $NOT_PUT_BACK ]] || printf 'left:   %s could not be put back; the next run goes on from what is noted in /var/lib/homelab\n' "$NOT_PUT_BACK" || :
}

# full_places - which file systems that we write to have no room left, in words.
full_places() {
  local place
  for place in /etc /var/lib /boot /run; do
    [[ ! -d $ROOT$place || $(exec_within "$ASK_SECONDS" df -P -B1 "$ROOT$place" 2>/dev/null | awk 'NR == 2 { print ($4 < 65536) }') != 1 ]] ||
      printf '; the file system of %s is full' "$place"
  done
}
