#!/usr/bin/env bash
# A file of this host as a JSON string; and files that decide something, which must be read whole.
# Needs: common, text
#
# Gives: string_of PATH; note_unreadable FILE..., not_whole PATH WHY, is_unreadable PATH; needed_string PATH; unreadable, as a key of read_host.sh's answer.

# string_of PATH - its text, without empty lines at its end; empty when it isn't there.
string_of() {
  local TEXT
  read_text "$ROOT$1"
  cut_end "$TEXT"
  json_string "$TEXT"
}

# note_unreadable FILE... - each of these that is there, and can't be read to its end, goes to UNREADABLE, as `PATH: why`: what lacks a line of it decides nothing.
# By a program, for all of them at once: of a disk that fails while it is read, bash's own means don't tell. What is no file isn't opened: a pipe
# would be waited for.
UNREADABLE=()
not_whole() { is_unreadable "$1" || UNREADABLE+=("$1: $2"); } # PATH WHY

note_unreadable() {
  local file said status files=()
  for file in "$@"; do
    if [[ -f $file ]]; then
      files+=("$file")
    elif [[ -e $file || -L $file ]]; then
      not_whole "${file#"$ROOT"}" "it is no file"
    fi
  done
  ((${#files[@]} > 0)) && ! within "$ASK_SECONDS" cat -- "${files[@]}" >/dev/null 2>&1 || return 0
  for file in "${files[@]}"; do
    status=0
    said=$(exec_within "$ASK_SECONDS" cat -- "$file" 2>&1 >/dev/null) || status=$?
    # One that has gone meanwhile has nothing to say.
    ((status > 0)) && [[ -e $file ]] || continue
    ((status != 124 && status != 137)) || said="no answer within $ASK_SECONDS s"
    said=${said##*: }
    not_whole "${file#"$ROOT"}" "${said:-status $status of cat}"
    # The others wait for the same thing.
    ((status != 124 && status != 137)) || return 0
  done
}

is_unreadable() { # PATH
  local one
  for one in "${UNREADABLE[@]}"; do [[ $one != "$1: "* ]] || return 0; done
  return 1
}

# needed_string PATH - as string_of, of a file that decides something.
needed_string() {
  local TEXT=''
  note_unreadable "$ROOT$1"
  if ! is_unreadable "$1"; then
    read_text "$ROOT$1"
    need_room "$1" "$TEXT"
  fi
  cut_end "$TEXT"
  json_string "$TEXT"
}

# need_room PATH TEXT - of a longer text the middle isn't passed on.
need_room() { ((${#2} <= ANSWER_BYTES)) || not_whole "$1" "what matters of it is longer than $ANSWER_BYTES bytes"; }

unreadable() {
  printf ',"unreadable":'
  json_list "${UNREADABLE[@]}"
}
