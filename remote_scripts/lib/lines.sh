#!/usr/bin/env bash
# Lines, by bash itself: what is asked often costs no program's start.
#
# Gives: find_first FILE PATTERN -> FIRST; lines_of ITEM...

# find_first FILE PATTERN - sets FIRST: what the first group of this extended regular expression is in the first line that fits; nothing where none does, or the file
# can't be read.
find_first() {
  local line=''
  FIRST=''
  while IFS= read -r line || [[ -n $line ]]; do
    [[ $line =~ $2 ]] || continue
    FIRST=${BASH_REMATCH[1]}
    return 0
  done 2>/dev/null <"$1" || :
}

# lines_of ITEM... - each on a line of its own, but for empty ones.
lines_of() {
  local item
  for item in "$@"; do [[ -z $item ]] || printf '%s\n' "$item"; done
}
