#!/usr/bin/env bash
# Which packages are installed.
#
# Gives: package_version NAME; read_installed -> PRESENT, WHOLE, LEFT; forget_installed; is_whole NAME[=PATTERN].
INSTALLED_READ=no

# package_version NAME - the version of a package that is wholly installed; nothing for any other.
package_version() {
  local state version
  while read -r state version; do
    [[ $state != installed ]] || printf '%s\n' "$version"
  done < <(dpkg-query -W -f='${db:Status-Status} ${Version}\n' "$1" 2>/dev/null)
}

# read_installed - PRESENT[name] = version of what is there, configured or not; WHOLE[name] = version of what is wholly installed; LEFT[name]:
# removed, with its configuration left. Once, until something may have changed it (forget_installed).
read_installed() {
  local name version state
  [[ $INSTALLED_READ == no ]] || return 0
  declare -gA PRESENT=() WHOLE=() LEFT=()
  command -v dpkg-query >/dev/null || return 0
  while IFS=$'\t' read -r name state version; do
    case $state in
      installed) WHOLE[$name]=$version PRESENT[$name]=$version ;;
      config-files) LEFT[$name]=yes ;;
      not-installed) ;;
      *) PRESENT[$name]=$version ;;
    esac
  done < <(dpkg-query -W -f='${Package}\t${db:Status-Status}\t${Version}\n')
  # One that was cut short isn't kept.
  wait "$!" || return 0
  INSTALLED_READ=yes
}

forget_installed() { INSTALLED_READ=no; }

# is_whole NAME[=PATTERN] - after `read_installed`: is it installed, at such a version?
is_whole() {
  local name=${1%%=*} pattern='*'
  [[ $1 != *=* ]] || pattern=${1#*=}
  # shellcheck disable=SC2053 # a pattern, as apt takes it
  [[ -n ${WHOLE[$name]:-} && ${WHOLE[$name]} == $pattern ]]
}
