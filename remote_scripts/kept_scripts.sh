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
  local folder=$ROOT$SCRIPTS/$OWNER file name names=()
  take_lock
  need_dir "$folder"
  printf '%s' "$CONTENT" | base64 -d | tar -xz --no-same-owner --no-same-permissions --transform 's,.*,.&.homelab-tmp,' -C "$folder" ||
    incomplete "the archive can't be unpacked$(full_places)"
  for file in "$folder"/.*.homelab-tmp; do
    name=${file##*/.}
    is_whole "$file" "${name%.homelab-tmp}" || incomplete "${name%.homelab-tmp} is not what it was$(full_places)"
    names+=("${name%.homelab-tmp}")
  done
  sync -f "$folder"
  for name in "${names[@]}"; do
    touch "$folder/.$name.homelab-tmp"
    mv -fT "$folder/.$name.homelab-tmp" "$folder/$name"
  done
  leave_versions "$folder" " ${names[*]} "
  finish
  printf '{"kept":%s}\n' "${#names[@]}"
}

apply() {
  local files=("$ROOT$SCRIPTS/$OWNER"/*)
  printf '{"kept":%s}\n' "${#files[@]}"
}

incomplete() {
  die "this program's scripts in $SCRIPTS/$OWNER" "$1" "every later step runs one of them; nothing else was changed" \
    "make room below /var, then run \`pulumi up\` again"
}

# is_whole FILE NAME - is its content what the name says?
is_whole() {
  local sum
  sum=$(sha256sum <"$1") && [[ ${2##*.} =~ ^[0-9a-f]{16}$ && $sum == "${2##*.}"* ]]
}

# leave_versions FOLDER NAMES - of each script those that were put just now, and the latest of the others; the clock may have been wrong.
leave_versions() {
  local name file files
  while IFS= read -r name; do
    mapfile -t files < <(cd "$1" && ls -1t -- "$name".*)
    for file in "${files[@]:VERSIONS}"; do
      [[ $2 == *" $file "* ]] || rm -f "$1/$file"
    done
  done < <(find "$1" -maxdepth 1 -type f ! -name '.*' -printf '%f\n' | sed 's/\.[^.]*$//' | sort -u)
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
