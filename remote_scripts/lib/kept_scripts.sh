#!/usr/bin/env bash
# Before a script that is kept on this host (layers/kept_scripts.py), and before arguments of it that are kept, too (homelab/remote/kept_scripts.py).
#
# Gives: need_kept_scripts NAME.SUM... -> KEPT_TEXT, KEPT_QUOTED. Variables: KEPT_IN (their folder, without ROOT), KEPT_VERB (what is to be done), KEPT_NOTES
#   (yes: what the script undoes is noted on this host alone).

# need_kept_scripts NAME.SUM... - KEPT_TEXT has their texts, read once and compared with their names; KEPT_QUOTED as they stand between single
# quotes. To undo something, the latest version of a script is taken where the very one is gone.
# Bash takes ten times as long for these where a character may be several bytes; what follows sets it, too (common.sh).
export LC_ALL=C
declare -A KEPT_TEXT KEPT_QUOTED
need_kept_scripts() {
  local name quote="'" quoted="'\"'\"'"
  if [[ $KEPT_VERB == revert && $KEPT_NOTES == yes && ! -e ${ROOT:-}/var/lib/homelab ]]; then
    printf 'this host has no notes of this program (/var/lib/homelab): there is nothing to give back\n' >&2
    printf '{"reverted":"nothing"}\n'
    exit 0
  fi
  for name in "$@"; do
    read_kept_script "$name" || read_latest_kept_script "$name" || {
      printf 'wanted: %s\nfound:  %s\nwhy:    %s\nnext:   %s\n' "a script of this program's on this system, $KEPT_IN/$name" \
        "it is missing, or has been changed" "this step is done by it; nothing was changed" \
        "run \`pulumi up --refresh\`, which puts it there again, then the same once more"
      exit 1
    }
    KEPT_QUOTED[$name]=${KEPT_TEXT[$name]//"$quote"/"$quoted"}
  done
}

# read_kept_script NAME.SUM [AS] - as what is asked for by the name AS. A name with no sum, or with a shorter one, says nothing of its text.
read_kept_script() {
  local text sum
  { text=$(<"${ROOT:-}$KEPT_IN/$1"); } 2>/dev/null && sum=$(printf '%s' "$text" | sha256sum) && [[ $text && $sum && ${1##*.} == "${sum::16}" ]] || return 1
  KEPT_TEXT[${2:-$1}]=$text
}

read_latest_kept_script() {
  local file
  [[ $KEPT_VERB == revert ]] || return 1
  while IFS= read -r file; do
    ! read_kept_script "${file##*/}" "$1" || return 0
  done < <(ls -1t -- "${ROOT:-}$KEPT_IN/${1%.*}".* 2>/dev/null)
  return 1
}
