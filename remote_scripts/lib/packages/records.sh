#!/usr/bin/env bash
# What a layer added, changed or removed, in STATE/packages (packages.sh says how).
# Needs: packages/apt, packages/installed
#
# Gives: read_record LAYER -> NOW, BEFORE, MARK; write_record LAYER, settle_record LAYER, record_change LAYER SIMULATION;
#   packages_of LAYER, packages_json LAYER; is_ours NAME; require_others_kept SIMULATION WHAT.

# read_record LAYER - NOW[name], BEFORE[name], MARK[name].
read_record() {
  local name now before mark record=$STATE/packages/$1
  declare -gA NOW=() BEFORE=() MARK=()
  [[ -f $record ]] || return 0
  while IFS=$'\t' read -r name now before mark; do
    NOW[$name]=$now BEFORE[$name]=$before MARK[$name]=$mark
  done <"$record"
}

# write_record LAYER
write_record() {
  local name record
  if ((${#NOW[@]} == 0)); then
    remove_file "/var/lib/homelab/packages/$1"
    return 0
  fi
  need_dir "$STATE/packages"
  record=$(for name in "${!NOW[@]}"; do
    printf '%s\t%s\t%s\t%s\n' "$name" "${NOW[$name]}" "${BEFORE[$name]}" "${MARK[$name]}"
  done | sort) || return 1
  write_atomically "/var/lib/homelab/packages/$1" 0600 printf '%s\n' "$record"
}

# settle_record LAYER - after `read_installed`: the record says what there is; what is as it was before the layer isn't in it.
settle_record() {
  local name
  read_record "$1"
  for name in "${!NOW[@]}"; do
    NOW[$name]=${PRESENT[$name]:--}
    # What is left of one that was removed for another of ours is purged with the rest.
    [[ ${NOW[$name]} != "${BEFORE[$name]}" || -n ${LEFT[$name]:-} ]] || unset "NOW[$name]"
  done
  write_record "$1"
}

# packages_of LAYER - what it added or changed and is there.
packages_of() {
  local record=$STATE/packages/$1 line
  [[ -f $record ]] || return 0
  while IFS= read -r line; do
    [[ ${line#*$'\t'} == $'-\t'* ]] || printf '%s\n' "${line%%$'\t'*}"
  done <"$record"
}

# packages_json LAYER - the same as a JSON list.
packages_json() {
  local found=()
  mapfile -t found < <(packages_of "$1")
  json_list "${found[@]}"
}

# is_ours NAME - did some layer of ours add it?
is_ours() {
  local record line
  for record in "$STATE"/packages/*; do
    [[ -f $record ]] || continue
    # A version may be empty, so that the line isn't split.
    while IFS= read -r line; do
      [[ $line != "$1"$'\t'*$'\t-\t'* ]] || return 0
    done <"$record"
  done
  return 1
}

# record_change LAYER SIMULATION - adds what `apt-get -s` has announced.
record_change() {
  local name old new manual
  read_record "$1"
  manual=$(apt-mark showmanual)
  while IFS=$'\t' read -r name old new; do
    if [[ -z ${NOW[$name]:-} ]]; then
      BEFORE[$name]=$old MARK[$name]=auto
      [[ $'\n'$manual$'\n' != *$'\n'$name$'\n'* ]] || MARK[$name]=manual
    fi
    NOW[$name]=$new
  done < <(announced "$2")
  write_record "$1"
}

# require_others_kept SIMULATION WHAT - nothing may be removed but what is ours.
require_others_kept() {
  local name against=()
  while read -r name; do
    is_ours "$name" || against+=("$name")
  done < <(awk '$1 == "Remv" || $1 == "Purg" { print $2 }' "$1" | sort -u)
  ((${#against[@]} == 0)) || die "$2" "${against[*]} would be removed for it" "they aren't this program's to remove" \
    "remove what is in the way yourself (\`apt-get remove ${against[*]}\`), then run \`pulumi up\` again"
}
