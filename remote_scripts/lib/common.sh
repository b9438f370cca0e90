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

log() { printf '%s\n' "$*" >&2 2>/dev/null || :; }

# die WANTED FOUND WHY NEXT - the one message a person gets; everything this run changed is put back first.
die() {
  undo
  printf 'wanted: %s\nfound:  %s\nwhy:    %s\nnext:   %s\n' "$1" "$2" "$3" "$4"
  exit 99 # turned into 1 by the EXIT trap: the message is out
}

unexpected() {
  undo
  printf 'wanted: every command of this script to succeed\nfound:  exit status %s at %s\nwhy:    %s\nnext:   %s\n' "$1" \
    "${failed_at:-an unknown place}" "going on would leave the host half configured; what this run changed was put back" \
    "see the log above, mend it, and run \`pulumi up\` again"
}

# json_string TEXT - as a JSON string, quotes included. Control characters other than tab and newline are dropped.
json_string() {
  local s=${1//\\/\\\\}
  s=${s//\"/\\\"}
  s=${s//$'\t'/\\t}
  s=${s//$'\n'/\\n}
  printf '"%s"' "${s//[[:cntrl:]]/}"
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

# One writer at a time: a run whose client was killed goes on to its end, and the next one waits for it.
take_lock() {
  mkdir -p "$ROOT/run/lock"
  exec {LOCK}>"$ROOT/run/lock/homelab"
  flock -w "${LOCK_TIMEOUT:-900}" "$LOCK" || die "to be the only one changing this host" \
    "another run still holds /run/lock/homelab after ${LOCK_TIMEOUT:-900} s" \
    "two runs at once would write over each other" "wait for it, or look at it with: fuser -v /run/lock/homelab"
}

# run_logged COMMAND... - its output goes to a file first, so that it outlives a client that is gone; OUTPUT is its tail.
run_logged() {
  local status=0
  "$@" >"$ROOT/run/lock/homelab.log" 2>&1 </dev/null {LOCK}>&- || status=$?
  [[ ! -s $ROOT/run/lock/homelab.log ]] || log "$(<"$ROOT/run/lock/homelab.log")"
  OUTPUT=$(tail -n 5 "$ROOT/run/lock/homelab.log")
  rm -f "$ROOT/run/lock/homelab.log"
  return "$status"
}
