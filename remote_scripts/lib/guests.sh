#!/usr/bin/env bash
# Which guests of this host run.
# Needs: common
#
# Gives: find_guests KIND -> GUESTS_HERE.

# find_guests vm|lxc - sets GUESTS_HERE: of each that runs its id, a blank, its name. The last column of `qm list` is the VM's process: one without
# a name is listed as `VM 103`, so that its status isn't the third, and a paused one runs, too. Status 1: there was no answer, which is no
# empty list.
find_guests() {
  local text program=qm word last
  GUESTS_HERE=()
  [[ $1 == vm ]] || program=pct
  command -v "$program" >/dev/null || return 0
  text=$(exec_within "$ASK_SECONDS" "$program" list 2>/dev/null) || return 1
  while read -ra word; do
    ((${#word[@]} > 0)) || continue
    last=${word[${#word[@]} - 1]}
    if [[ $1 != vm ]]; then
      [[ ${word[1]-} != running ]] || GUESTS_HERE+=("${word[0]} $last")
    elif [[ $last =~ ^[1-9][0-9]*$ ]]; then
      if [[ ${word[1]-} == VM && ${word[2]-} == "${word[0]}" ]]; then GUESTS_HERE+=("${word[0]} VM ${word[0]}"); else GUESTS_HERE+=("${word[0]} ${word[1]-}"); fi
    fi
  done <<<"$text"
}
