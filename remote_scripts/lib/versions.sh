#!/usr/bin/env bash
# Versions compared, as `sort -V` has them.
#
# Gives: at_least VERSION FOUND.

# at_least VERSION FOUND - is what was found that version, or a later one? Of plain numbers by bash itself.
at_least() {
  local wanted found part plain='^(0|[1-9][0-9]{0,17})(\.(0|[1-9][0-9]{0,17}))*$'
  if [[ ! $1 =~ $plain || ! $2 =~ $plain ]]; then
    sort -VC <<<"$1"$'\n'"$2"
    return
  fi
  IFS=. read -ra wanted <<<"$1"
  IFS=. read -ra found <<<"$2"
  for part in "${!wanted[@]}"; do
    ((part < ${#found[@]})) || return 1
    ((wanted[part] == found[part])) || return $((wanted[part] > found[part]))
  done
}
