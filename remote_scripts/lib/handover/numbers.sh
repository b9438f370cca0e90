#!/usr/bin/env bash
# What lines of containers have of a card that is handed over: numbers that may be others when it comes back.
# Needs: handover/state, handover/card, nvidia
#
# Gives: numbers_now, numbers_moved. Of the card that was read.

# numbers_now - minor of /dev/nvidiaN, majors of nvidia-uvm and nvidia-caps, names in /dev/dri: what lines of containers have of it.
numbers_now() {
  local uvm caps
  uvm=$(nvidia_major nvidia-uvm) caps=$(nvidia_major nvidia-caps)
  printf '%s,%s,%s,%s' "$(nvidia_minor "$GPU")" "$uvm" "$caps" "$(drm_names)"
}

# numbers_moved - has the card, or its driver, others than when it was taken? What wasn't there then, or isn't there yet, has not moved.
numbers_moved() {
  local was now index name
  IFS=, read -ra was <<<"${S[numbers]:-}"
  IFS=, read -ra now <<<"$(numbers_now)"
  for index in 0 1 2; do ! is_another "${was[index]:-}" "${now[index]:-}" || return 0; done
  for name in ${was[3]:-}; do ! is_renamed "$name" "${now[3]:-}" || return 0; done
  return 1
}

# is_another WAS NOW - of a number; empty: there is none.
is_another() { [[ -n $1 && -n $2 && $1 != "$2" ]]; }

# is_renamed NAME NAMES - isn't it among these, and another one of its kind is?
is_renamed() { [[ " $2 " != *" $1 "* && " $2" == *" ${1%%[0-9]*}"* ]]; }
