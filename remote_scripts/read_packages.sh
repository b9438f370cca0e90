#!/usr/bin/env bash
# Which packages of NVIDIA's stack this program has put on a system, exactly, and which newer ones its repositories have. Changes nothing, and
# asks no repository.
# Needs: files, driver, packages/installed, os_release
#
# Answer: {"distribution" (ubuntu 24.04),"driver": the version of the installed libraries, or empty,"packages": [NAME VERSION SHA256 NEWEST,
#   of each that was added or changed; a SHA-256 or newest version that no repository tells is `-`],"installer": of NVIDIA's that this program
#   has run: VERSION SHA256; empty: none, or one that is gone}.
# Verbs: read_packages.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin

read_packages() {
  local names=() name version sum newest lines=() distribution
  declare -A sums=() best=()
  read_installed
  mapfile -t names < <(cut -f 1 "$STATE"/packages/* 2>/dev/null | sort -u)
  while read -r name version sum; do
    sums["$name $version"]=$sum
    # The newest comes first, as apt-cache sorts them.
    [[ -n ${best[$name]:-} ]] || best[$name]=$version
  done < <(records "${names[@]}")
  for name in "${names[@]}"; do
    version=${WHOLE[$name]:-}
    [[ -n $version ]] || continue
    sum=${sums["$name $version"]:--} newest=${best[$name]:--}
    lines+=("$name $version $sum $newest")
  done
  find_os_value ID
  distribution=$OS_VALUE
  find_os_value VERSION_ID
  printf '{"distribution":'
  json_string "$distribution $OS_VALUE"
  json_entry driver "$(library_version)"
  printf ',"packages":'
  json_list "${lines[@]}"
  json_entry installer "$(installer)"
  printf '}\n'
}

installer() {
  local found sum
  { IFS= read -r found && IFS= read -r _ && IFS= read -r sum; } 2>/dev/null <"$STATE/nvidia-run" || return 0
  [[ $found != "$(run_version)" || -z $sum ]] || printf '%s %s' "$found" "$sum"
}

# records NAME... - NAME VERSION SHA256 of each version that a repository has.
records() {
  (($# > 0)) || return 0
  apt-cache show "$@" 2>/dev/null </dev/null |
    awk '/^Package: / { name = $2 } /^Version: / { version = $2 } /^SHA256: / { print name, version, $2 }' || :
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
