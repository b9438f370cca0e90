#!/usr/bin/env bash
# Shared by every script that runs on a host: messages, JSON, one writer at a time.
#
# A script travels over SSH as standard input: assignments of its arguments, this library, the script. Contract:
#   stdout  exit 0: one line of JSON. Any other exit: the message for the person (see `die`).
#   stderr  a log for people.
# ROOT prefixes every path, so that a test can run a script on a folder; on a host it is empty.
set -Eeuo pipefail
umask 022
export LC_ALL=C
ROOT=${ROOT:-}

# A client that dies or cancels in the middle must not stop us between two files: a run goes on to its end.
trap '' PIPE HUP TERM
trap 'failed_at="line $LINENO: $BASH_COMMAND"' ERR
trap 'status=$?; [[ $status == 0 || $status == 99 ]] || unexpected "$status"; [[ $status != 99 ]] || exit 1' EXIT

# What a file or a program of this host says may hold any bytes, and be of any length. What goes out is text: UTF-8 without escape
# sequences and control characters (U+FFFD stands for what isn't), a carriage return as the end of its line, of long ones head and tail.
# The characters that turn or hide writing go, too. \x01 marks the end of each character that stays.
AS_TEXT='s/\x1b\[[0-?]*[ -\/]*[@-~]//g
s/\x1b[]PX^_][^\x07\x1b]*(\x07|\x1b\\)//g
s/\r+$//
s/\r/\n/g
/[\x00-\x08\x0b-\x1f\x7f-\xff]/ {
  s/[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]|\xd8\x9c|\xe2\x80[\x8b-\x8f\xa8-\xae]|\xe2\x81[\xa0-\xaf]|\xef\xbb\xbf/\xff/g
  s/((([\xc2-\xdf]|\xe0[\xa0-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]|\xed[\x80-\x9f]|\xf0[\x90-\xbf][\x80-\xbf]|[\xf1-\xf3][\x80-\xbf]{2}|\xf4[\x80-\x8f][\x80-\xbf])[\x80-\xbf]))|[\x80-\xff]/\1\x01/g
  s/([\x80-\xff])\x01/\1/g
  s/\x01/\xef\xbf\xbd/g
}'
# How much of a text goes into an answer, and how much into the log at once, in bytes.
ANSWER_BYTES=262144
LOG_BYTES=65536

# Whatever else the commands of this script say, too. (Nothing is left to be waited for: it ends with the last who writes.)
exec 2> >(exec sed -u -E "$AS_TEXT" >&2)

# text_of TEXT [BYTES] - sets TEXT: it as text, BYTES at most.
text_of() {
  local bytes=${2:-$ANSWER_BYTES}
  TEXT=$1
  ((${#TEXT} <= bytes)) || TEXT="${TEXT:0:bytes/2}"$'\n'"… $((${#TEXT} - bytes)) bytes are left out here …"$'\n'"${TEXT: -(bytes / 2)}"
  [[ $TEXT == *[!$'\t\n\x20-\x7e']* ]] || return 0
  TEXT=$(printf '%s\nx' "$TEXT" | sed -E "$AS_TEXT")
  TEXT=${TEXT%$'\n'x}
}

# of_file PATH - what it holds, head and tail of much; nothing where it can't be read.
of_file() {
  local TEXT='' size
  [[ -r $1 && ! -d $1 ]] || return 0
  { # bash says of each NUL that it leaves it out
    TEXT=$(head -c $((ANSWER_BYTES + 1)) "$1")
    if ((${#TEXT} > ANSWER_BYTES)); then
      size=$(wc -c <"$1")
      TEXT=${TEXT:0:ANSWER_BYTES/2}$'\n'"… $((size - ANSWER_BYTES)) bytes are left out here …"$'\n'$(tail -c $((ANSWER_BYTES / 2)) "$1")
    fi
  } 2>/dev/null
  printf '%s' "$TEXT"
}

# How long a question to a program of this host may take, in seconds: one that hangs (a dead NFS mount, a card that is gone) must not
# hide what is known without it.
ASK_SECONDS=20
# And how long what changes something may take: an initramfs for each kernel on a slow disk takes minutes.
RUN_SECONDS=1800

# within SECONDS COMMAND... - with an end: status 124 after that time. What these scripts ignore, their children would, too.
within() { timeout -k 2 "$1" env --default-signal=TERM,HUP,PIPE "${@:2}"; }

# kernel_says - the kernel's log since it booted, whole where the journal has it.
kernel_says() {
  local text
  text=$(within "$ASK_SECONDS" journalctl -k -b -q --no-pager -o short-monotonic 2>/dev/null) || text=''
  [[ -n $text ]] || text=$(within "$ASK_SECONDS" dmesg 2>/dev/null) || text=''
  printf '%s\n' "$text"
}

log() {
  local TEXT
  text_of "$*" "$LOG_BYTES"
  printf '%s\n' "$TEXT" >&2 2>/dev/null || :
}

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
    text_of "$part" "$LOG_BYTES"
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
  undo || :
  [[ -z $NOT_PUT_BACK ]] || printf 'left:   %s could not be put back; the next run goes on from what is noted in /var/lib/homelab\n' "$NOT_PUT_BACK" || :
}

# full_places - which file systems that we write to have no room left, in words.
full_places() {
  local place
  for place in /etc /var/lib /boot /run; do
    [[ ! -d $ROOT$place || $(within "$ASK_SECONDS" df -P -B1 "$ROOT$place" 2>/dev/null | awk 'NR == 2 { print ($4 < 65536) }') != 1 ]] ||
      printf '; the file system of %s is full' "$place"
  done
}

# json_string TEXT - as a JSON string, quotes included.
json_string() {
  local TEXT s
  text_of "$1"
  s=${TEXT//\\/\\\\}
  s=${s//\"/\\\"}
  s=${s//$'\t'/\\t}
  s=${s//$'\n'/\\n}
  printf '"%s"' "$s"
}

# json_list ITEM... - as a JSON list of strings.
json_list() {
  local item separator=
  printf '['
  for item in "$@"; do
    printf '%s' "$separator"
    json_string "$item"
    separator=,
  done
  printf ']'
}

# -- one writer at a time ----------------------------------------------------------------------------------------------
# The lock and the logs lie where root alone can make a file: in a folder that everybody may write to (/run/lock), anybody could hold
# the lock for ever.
RUN=$ROOT/run/homelab

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
    "whoever may write to it could keep this program from running" "find out whose /run/homelab is, and move it away"
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
