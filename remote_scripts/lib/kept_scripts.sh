#!/usr/bin/env bash
# Before a script that is kept on this host (kept_scripts.sh), and before arguments of it that are kept, too (homelab/remote/kept_scripts.py).
#
# Gives: kept_script NAME.SUM, kept_script_quoted NAME.SUM; need_kept_scripts NAME.SUM... Variables: KEPT (their folder), KEPT_VERB (what is to
#   be done).

# kept_script NAME.SUM - its text. To undo something, the latest version of that script is taken where the very one is gone.
kept_script() {
  local file=$KEPT/$1
  if ! kept_script_is_whole "$file"; then
    [[ $KEPT_VERB == revert ]] || return 1
    while IFS= read -r file; do
      ! kept_script_is_whole "$file" || break
      file=''
    done < <(ls -1t -- "$KEPT/${1%.*}".* 2>/dev/null)
    [[ -n $file ]] || return 1
  fi
  cat "$file"
}

# kept_script_quoted NAME.SUM - its text as it stands between single quotes.
kept_script_quoted() {
  local text quote="'" quoted="'\"'\"'"
  text=$(kept_script "$1")
  printf '%s' "${text//"$quote"/"$quoted"}"
}

kept_script_is_whole() {
  local sum
  sum=$(sha256sum <"$1" 2>/dev/null) && [[ $sum == "${1##*.}"* ]]
}

# need_kept_scripts NAME.SUM... - all that is going to be asked for.
need_kept_scripts() {
  local name
  for name in "$@"; do
    kept_script "$name" >/dev/null || {
      printf 'wanted: %s\nfound:  %s\nwhy:    %s\nnext:   %s\n' "a script of this program's on this system, $KEPT/$name" \
        "it is missing, or has been changed" "this step is done by it; nothing was changed" \
        "run \`pulumi up --refresh\`, which puts it there again, then the same once more"
      exit 1
    }
  done
}
