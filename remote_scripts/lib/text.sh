#!/usr/bin/env bash
# What goes out is text, whatever bytes went in; and JSON.
#
# Gives: text_of TEXT [BYTES] -> TEXT; cut_end TEXT -> TEXT; read_text PATH -> TEXT, of_file PATH; json_string TEXT; json_entry KEY TEXT; json_list ITEM...
# Variables: AS_TEXT, NO_SECRETS (for sed -E), ANSWER_BYTES, LOG_BYTES, LINE_BYTES.

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
# Who may go somewhere (a proxy, a mirror) by scheme://USER:PASSWORD@: whoever says such an address, it is never shown whole.
NO_SECRETS='s%://[^/[:space:]"\x27<>]+@%://(secret)@%g'
# How much of a text goes into an answer, and how much into the log at once, in bytes.
ANSWER_BYTES=262144
LOG_BYTES=65536
# Of a line that pulumi-command shows while a script runs: it waits for ever behind one of 65,536 bytes and more (bufio.Scanner; util.LogOutput). A byte
# that is no character becomes one of three.
LINE_BYTES=16384

# text_of TEXT [BYTES] - sets TEXT: it as text, BYTES at most.
text_of() {
  local bytes=${2:-$ANSWER_BYTES}
  TEXT=$1
  ((${#TEXT} <= bytes)) || TEXT="${TEXT:0:bytes/2}"$'\n'"… $((${#TEXT} - bytes)) bytes are left out here …"$'\n'"${TEXT: -(bytes / 2)}"
  [[ $TEXT == *[!$'\t\n'\ -~]* ]] || return 0 # a range is one only outside quotes
  TEXT=$(printf '%s\nx' "$TEXT" | sed -E "$AS_TEXT")
  TEXT=${TEXT%$'\n'x}
}

# cut_end TEXT - sets TEXT: it without empty lines at its end. Many of them a program takes away: bash itself would take hours for a megabyte.
cut_end() {
  TEXT=${1%$'\n'}
  [[ $TEXT != *$'\n' ]] || TEXT=$(printf '%s' "$TEXT")
}

# read_text PATH - sets TEXT: what it holds, head and tail of much; nothing where it can't be read. of_file PATH - says it.
read_text() {
  local part taken=0 size
  TEXT=''
  [[ -r $1 && ! -d $1 ]] || return 0
  {
    # By bash itself, which takes a tenth of the time that a program's start does: a host is read by this. From NUL to NUL, without them.
    while ((taken <= ANSWER_BYTES)) && part='' && { IFS= read -r -d '' -n $((ANSWER_BYTES + 1 - taken)) part || [[ -n $part ]]; }; do
      TEXT+=$part
      ((taken += ${#part} + 1))
    done <"$1" || : # gone meanwhile, or its disk fails
    if ((${#TEXT} > ANSWER_BYTES)); then
      size=$(wc -c <"$1") || size=${#TEXT}
      TEXT=${TEXT:0:ANSWER_BYTES/2}$'\n'"… $((size - ANSWER_BYTES)) bytes are left out here …"$'\n'$(tail -c $((ANSWER_BYTES / 2)) "$1" || :)
    fi
  } 2>/dev/null
}

of_file() {
  local TEXT
  read_text "$1"
  printf '%s' "$TEXT"
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

# json_entry KEY TEXT - another key of an object that has one. Without a subshell, as $(json_string TEXT) is one.
json_entry() {
  printf ',"%s":' "$1"
  json_string "$2"
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
