#!/usr/bin/env bash
# Lines, by bash itself: what is asked often costs no program's start.
#
# Gives: read_lines FILE -> READ_LINES; find_first FILE PATTERN -> FIRST; has_line PATTERN FILE...; put_in_order ITEM... -> IN_ORDER; find_last TEXT -> LAST; lines_of ITEM...

# read_lines FILE - sets READ_LINES: none where it can't be read. At once: for each `read` of a loop bash goes back in the file to where the line ends, and
# the kernel makes what is below /proc and /sys anew for that, Proxmox VE what is below /etc/pve. Where it has changed meanwhile, a line is lost, or begins too late.
read_lines() {
  READ_LINES=()
  { mapfile -t READ_LINES <"$1"; } 2>/dev/null || READ_LINES=()
}

# find_first FILE PATTERN - sets FIRST: what the first group of this extended regular expression is in the first line that fits; nothing where none does, or the file
# can't be read.
find_first() {
  local line
  FIRST=''
  read_lines "$1"
  for line in "${READ_LINES[@]}"; do
    [[ $line =~ $2 ]] || continue
    FIRST=${BASH_REMATCH[1]}
    return 0
  done
}

# has_line PATTERN FILE... - does this extended regular expression fit any line of these files? One that can't be read has none.
has_line() {
  local file line
  for file in "${@:2}"; do
    read_lines "$file"
    for line in "${READ_LINES[@]}"; do [[ ! $line =~ $1 ]] || return 0; done
  done
  return 1
}

# put_in_order ITEM... - sets IN_ORDER: each once, as `sort -u` has them. Of a few.
put_in_order() {
  local item place
  IN_ORDER=()
  for item in "$@"; do
    for ((place = ${#IN_ORDER[@]}; place > 0; place--)); do [[ $item < ${IN_ORDER[place - 1]} ]] || break; done
    ((place > 0)) && [[ ${IN_ORDER[place - 1]} == "$item" ]] || IN_ORDER=("${IN_ORDER[@]:0:place}" "$item" "${IN_ORDER[@]:place}")
  done
}

# find_last TEXT - sets LAST: its last line. What is above is cut from the end: ${1##*$'\n'} takes half a minute for a line of 200 kB.
find_last() {
  local text=$'\n'$1 above
  above=${text%$'\n'*}
  LAST=${text:${#above}+1}
}

# lines_of ITEM... - each on a line of its own, but for empty ones.
lines_of() {
  local item
  for item in "$@"; do [[ -z $item ]] || printf '%s\n' "$item"; done
}
