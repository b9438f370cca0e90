#!/usr/bin/env bash
# Lines, by bash itself: what is asked often costs no program's start.
#
# Gives: first_in FILE PATTERN; lines_of ITEM...

# first_in FILE PATTERN - what the first group of this extended regular expression is in the first line that fits; nothing where none does, or the file
# can't be read.
first_in() {
  local line=''
  while IFS= read -r line || [[ -n $line ]]; do
    [[ $line =~ $2 ]] || continue
    printf '%s\n' "${BASH_REMATCH[1]}"
    return 0
  done 2>/dev/null <"$1" || :
}

# lines_of ITEM... - each on a line of its own, but for empty ones.
lines_of() {
  local item
  for item in "$@"; do [[ -z $item ]] || printf '%s\n' "$item"; done
}
