#!/usr/bin/env bash
# What lines of containers have of a card that is handed over: numbers that may be others when it comes back.
# Needs: handover/state, handover/card, nvidia
#
# Gives: find_numbers -> NUMBERS; numbers_moved WAS. Of the card that was read.

# find_numbers - sets NUMBERS: minor of /dev/nvidiaN, majors of nvidia-uvm and nvidia-caps, names in /dev/dri: what lines of containers have of it.
find_numbers() {
  local minor uvm
  find_minor "$GPU"
  minor=$NUMBER
  find_major nvidia-uvm
  uvm=$NUMBER
  find_major nvidia-caps
  find_drm_names
  NUMBERS=$minor,$uvm,$NUMBER,$DRM_NAMES
}

# numbers_moved WAS - has the card, or its driver, others than these? What wasn't there then, or isn't there yet, has not moved.
numbers_moved() {
  local was now index name
  IFS=, read -ra was <<<"$1"
  find_numbers
  IFS=, read -ra now <<<"$NUMBERS"
  for index in 0 1 2; do ! is_another "${was[index]:-}" "${now[index]:-}" || return 0; done
  for name in ${was[3]:-}; do ! is_renamed "$name" "${now[3]:-}" || return 0; done
  return 1
}

# is_another WAS NOW - of a number; empty: there is none.
is_another() { [[ -n $1 && -n $2 && $1 != "$2" ]]; }

# is_renamed NAME NAMES - isn't it among these, and another one of its kind is?
is_renamed() { [[ " $2 " != *" $1 "* && " $2" == *" ${1%%[0-9]*}"* ]]; }
