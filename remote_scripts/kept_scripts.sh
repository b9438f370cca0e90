#!/usr/bin/env bash
# Scripts that are kept on this host, so that a resource's input is what a script is told, and not its whole text.
# Needs: files
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
  local folder=$ROOT$SCRIPTS/$OWNER new file count=0
  take_lock
  new=$folder/.new
  rm -rf "$new"
  need_dir "$new"
  base64 -d <<<"$CONTENT" | tar -xz --no-same-owner --no-same-permissions -C "$new" || incomplete "$new" "the archive can't be unpacked$(full_places)"
  for file in "$new"/*; do
    is_whole "$file" || incomplete "$new" "${file##*/} is not what it was$(full_places)"
  done
  sync -f "$new"
  for file in "$new"/*; do
    mv -fT "$file" "$folder/${file##*/}"
    touch "$folder/${file##*/}"
    count=$((count + 1))
  done
  rm -rf "$new"
  leave_versions "$folder"
  finish
  printf '{"kept":%s}\n' "$count"
}

apply() {
  local files=("$ROOT$SCRIPTS/$OWNER"/*)
  printf '{"kept":%s}\n' "${#files[@]}"
}

incomplete() {
  rm -rf "$1"
  die "this program's scripts in $SCRIPTS/$OWNER" "$2" "every later step runs one of them; nothing else was changed" \
    "make room below /var, then run \`pulumi up\` again"
}

# is_whole FILE - is its content what its name says?
is_whole() {
  local sum
  sum=$(sha256sum <"$1") && [[ ${1##*.} =~ ^[0-9a-f]{16}$ && $sum == "${1##*.}"* ]]
}

# leave_versions FOLDER - of each name the latest.
leave_versions() {
  local name file files
  while IFS= read -r name; do
    mapfile -t files < <(cd "$1" && ls -1t -- "$name".*)
    for file in "${files[@]:VERSIONS}"; do rm -f "$1/$file"; done
  done < <(find "$1" -maxdepth 1 -type f -printf '%f\n' | sed 's/\.[^.]*$//' | sort -u)
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
