#!/usr/bin/env bash
# Scripts that are kept on this host, so that a resource's input is what a script is told, and not its whole text.
# Needs: files, whole
#
# Arguments: OWNER (whose they are: a project and a stack), CONTENT (a tar archive of them, compressed by gzip, in base64; for put).
# Changes: /var/lib/homelab/scripts/OWNER: files NAME.SUM, where SUM begins the SHA-256 of the content: which is whole can be told from its
#   name. Earlier versions stay for what was made by them, the latest of each name. Undone by `revert`.
# Output: {"kept": how many}.
# Verbs: put; apply, which changes nothing; revert.

SCRIPTS=/var/lib/homelab/scripts
# So many versions of one script stay.
VERSIONS=5

put() {
  local folder=$ROOT$SCRIPTS/$OWNER files lacking
  take_lock
  need_dir "$folder"
  rm -rf "$folder/.new"
  mkdir "$folder/.new" || incomplete "no folder for them could be made$(full_places)"
  printf '%s' "$CONTENT" | base64 -d | tar -xz --no-same-owner --no-same-permissions -C "$folder/.new" ||
    incomplete "the archive can't be unpacked$(full_places)"
  files=$(ls -1 "$folder/.new")
  lacking=$(comm -23 <(sort <<<"$files") <(whole_files "$folder/.new" | sort))
  [[ -z $lacking && -n $files ]] || incomplete "${lacking:-nothing} is not what it was$(full_places)"
  touch "$folder/.new"/*
  sync -f "$folder"
  mv -f -t "$folder" "$folder/.new"/*
  rmdir "$folder/.new"
  leave_versions "$folder" " ${files//$'\n'/ } "
  finish
  printf '{"kept":%s}\n' "$(wc -l <<<"$files")"
}

apply() {
  local files=("$ROOT$SCRIPTS/$OWNER"/*)
  printf '{"kept":%s}\n' "${#files[@]}"
}

incomplete() {
  rm -rf "$ROOT$SCRIPTS/$OWNER/.new"
  die "this program's scripts in $SCRIPTS/$OWNER" "$1" "every later step runs one of them; nothing else was changed" \
    "make room below /var, then run \`pulumi up\` again"
}

# leave_versions FOLDER NAMES - of each script those that were put just now, and the latest of the others; the clock may have been wrong.
leave_versions() {
  local file
  while IFS= read -r file; do
    [[ $2 == *" $file "* ]] || rm -f "$1/$file"
  done < <(find "$1" -maxdepth 1 -type f ! -name '.*' -printf '%T@ %f\n' | sort -rn |
    awk -v most="$VERSIONS" '{ name = $2; sub(/\.[^.]*$/, "", name); if (++seen[name] > most) print $2 }')
}

revert() {
  take_lock
  rm -rf "$ROOT$SCRIPTS/${OWNER:?}"
  finish
  printf '{"kept":0}\n'
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
