#!/usr/bin/env bash
# What lines of containers have of a card that is handed over: numbers that may be others when it comes back.
# Needs: handover/state, handover/card, lines, nvidia
#
# Gives: find_numbers -> NUMBERS; numbers_moved WAS, numbers_lack; note_freed -> FREED, is_anothers -> WHY. Of the card that was read.

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

# numbers_lack - is one of those that it had not there yet? Where nothing can be read, too.
numbers_lack() {
  local was now index
  IFS=, read -ra was <<<"${S[numbers]:-}"
  find_numbers
  IFS=, read -ra now <<<"$NUMBERS"
  for index in 0 1 2 3; do [[ -z ${was[index]:-} || -n ${now[index]:-} ]] || return 0; done
  return 1
}

# note_freed - sets FREED: what goes with the card and its driver, and may be another device's until it is back: majors, and MAJOR:MINOR of its other
# nodes. Status 1: that can't be told.
note_freed() {
  local function path line number name told=no uvm=no
  FREED=''
  read_lines "$ROOT/proc/devices"
  for line in "${READ_LINES[@]}"; do
    read -r number name <<<"$line"
    [[ $number != Block ]] || break
    [[ $number != 195 ]] || told=yes
    [[ $name != nvidia-uvm ]] || uvm=yes
    [[ $name != nvidia-* || $number == 195 ]] || FREED+="$number "
  done
  [[ $told == yes ]] && [[ $uvm == yes || ! -d $ROOT/sys/module/nvidia_uvm ]] || return 1
  for function in "${FUNCTIONS[@]}"; do
    # Not those of its sound: nobody who runs on has sound (staying.sh).
    for path in "$PCI/$function"/drm/*/dev; do
      [[ ! -e $path ]] || { read -r number <"$path" && FREED+="$number "; } || return 1
    done
  done
}

# is_anothers - is one of S[freed] another device's now, or may be? WHY says which. By bash itself: a program that can't be started tells nothing.
is_anothers() {
  local one link function line number name
  local -A drivers=()
  is_sole || { WHY="this host has another card of NVIDIA's by now, which could get its numbers" && return 0; }
  read_lines "$ROOT/proc/devices"
  for line in "${READ_LINES[@]}"; do
    read -r number name <<<"$line"
    [[ $number != Block ]] || break
    [[ -z $name ]] || drivers[$number]+=" $name"
  done
  ((${#drivers[@]} > 0)) || { WHY="which driver has which number can't be read" && return 0; }
  for one in ${S[freed]:-}; do
    if [[ $one == *:* ]]; then
      [[ -L $ROOT/sys/dev/char/$one ]] || continue
      link=$(readlink "$ROOT/sys/dev/char/$one") || link=''
      for function in "${FUNCTIONS[@]}"; do [[ $link != */"$function"/* ]] || continue 2; done
      WHY="the number $one, which was a node of the card's, is another device's now"
      return 0
    elif [[ -n ${drivers[$one]:-} && ${drivers[$one]} != *' nvidia'* ]]; then
      WHY="the number $one, which was NVIDIA's driver's, is another driver's now:${drivers[$one]}"
      return 0
    fi
  done
  return 1
}
