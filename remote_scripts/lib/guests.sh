#!/usr/bin/env bash
# Which guests of this host run.
# Needs: common
#
# Gives: running_guests KIND.

# running_guests vm|lxc - a line for each that runs: its id, a blank, its name. The last column of `qm list` is the VM's process: one without
# a name is listed as `VM 103`, so that its status isn't the third, and a paused one runs, too. Status 1: there was no answer, which is no
# empty list.
running_guests() {
  local text program=qm
  [[ $1 == vm ]] || program=pct
  command -v "$program" >/dev/null || return 0
  text=$(within "$ASK_SECONDS" "$program" list 2>/dev/null) || return 1
  if [[ $1 == vm ]]; then
    awk '$NF ~ /^[1-9][0-9]*$/ { print $1, $2 == "VM" && $3 == $1 ? "VM " $1 : $2 }' <<<"$text"
  else
    awk '$2 == "running" { print $1, $NF }' <<<"$text"
  fi
}
