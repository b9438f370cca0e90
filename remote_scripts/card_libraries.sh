#!/usr/bin/env bash
# Packages of the distribution by which programs in a container use its Intel and AMD cards: VA-API's drivers, OpenCL, ROCm's runtime.
# Needs: packages, os_release
#
# Arguments: CHOICES (a line for each distribution: ID, VERSION, packages separated by spaces, what it lacks or `-`; tabs between. Of `a|b` the one that is
# installed, else the first that the repositories have), those of packages.sh, GENERATION (no part in what happens).
# Changes: the packages; /var/lib/homelab/libraries names those that were asked for. With others than the last time, all of ours go first.
# Undone by `revert`: exactly the packages that were added; what others need by now stays, and is said. Under another name of the container in
# the settings than the last run's nothing is undone: they are that one's by now.
# Verbs: apply, revert.
# Answer: {"packages": asked for,"changed"}; of `revert` {"changed","kept"}.

DOING="packages for its cards"
ASKED=/var/lib/homelab/libraries

apply() {
  local wanted=() before=() name other=no
  take_lock
  read_installed
  find_wanted
  [[ ! -e $ROOT$ASKED ]] || read -ra before <"$ROOT$ASKED"
  for name in "${before[@]}"; do
    [[ " ${wanted[*]} " == *" $name "* ]] || other=yes
  done
  if [[ $other == yes ]]; then
    log "other packages than before are wanted: the former ones are removed"
    remove_packages libraries
  fi
  need_dir "$STATE"
  write_atomically "$ASKED" 0600 printf '%s\n' "${wanted[*]}"
  install_packages libraries no "${wanted[@]}"
  step_done libraries
  finish
  printf '{"packages":%s,"changed":"%s"}\n' "$(json_list "${wanted[@]}")" "$CHANGED"
}

revert() {
  take_lock
  ! is_anothers_step libraries || { leave_untouched && return; }
  remove_packages libraries
  remove_file "$ASKED"
  step_undone libraries
  finish
  printf '{"changed":"%s","kept":%s}\n' "$CHANGED" "$(json_list "${KEPT[@]}")"
}

# find_wanted - sets `wanted` of CHOICES. The lists of packages are fetched where something isn't installed.
find_wanted() {
  local id version names lacking word chosen='' updated=no found
  find_os_value ID
  found=$OS_VALUE
  find_os_value VERSION_ID
  found+=" $OS_VALUE"
  while IFS=$'\t' read -r id version names lacking; do
    [[ $found == "$id $version" ]] || continue
    [[ $lacking == - ]] || die "$NAME: packages for its cards" "$lacking" "no repository is added for them" \
      "leave that use out of libraries, or take a container of another release"
    chosen=$names
  done <<<"$CHOICES"
  [[ -n $chosen ]] || die "$NAME: packages for its cards" "it is ${found:-of no known distribution} (/etc/os-release)" \
    "their names are known of $(cut -f 1,2 <<<"$CHOICES" | tr '\t\n' ' ,' | sed 's/,$//;s/,/, /g') alone" \
    "take libraries out of its settings, and install them inside yourself; the card itself works in any container"
  for word in $chosen; do
    if [[ $updated == no ]] && ! is_there_already "$word"; then
      apt_update
      updated=yes
    fi
    wanted+=("$(one_of "$word")")
  done
}

is_there_already() { # A|B
  local name
  for name in ${1//|/ }; do
    [[ -z ${WHOLE[$name]:-} ]] || return 0
  done
  return 1
}

# one_of A|B - the installed one, else the first that can be had, else the last: apt says what is wrong with it.
one_of() {
  local name
  for name in ${1//|/ }; do
    [[ -z ${WHOLE[$name]:-} ]] || { printf '%s' "$name" && return 0; }
  done
  for name in ${1//|/ }; do
    [[ $name != "${1##*|}" && -z $(apt-cache madison "$name" 2>/dev/null </dev/null) ]] || { printf '%s' "$name" && return 0; }
    log "note: $name isn't in its repositories: ${1##*|} in its place"
  done
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
