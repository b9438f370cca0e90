#!/usr/bin/env bash
# NVIDIA's repositories, each with a key whose fingerprint is known; which versions may be installed, and which not by themselves.
# Needs: packages, driver, repository/entries, repository/keys
#
# Arguments: PREREQUISITES (packages), REPOSITORIES (a line for each: address, suite, list file, its line, the key's address, its
#   fingerprint, keyring; tabs between), APT_FILES (a line for each: path, and the content with \n for its ends of lines; a tab between), ASK
#   (packages), those of packages.sh, GENERATION (no part in what happens).
# Changes: the packages, lists, keyrings and files of apt's configuration; the lists of packages are fetched.
# Undone by `revert`: exactly these. Where somebody has a repository already, theirs is used, and no second entry is written: apt refuses
#   two with different keyrings.
# Verbs: apply, revert.
# Answer: {"offered":{PACKAGE:[VERSION]},"packages":[what was added],"changed"}; of revert {"kept":[packages],"changed"}.

LAYER=nvidia-repository
# Not fetched again while they are younger, unless something has changed.
LISTS_MINUTES=60

apply() {
  local names asked
  take_lock
  read -ra names <<<"$PREREQUISITES"
  read -ra asked <<<"$ASK"
  find_repositories
  drop_others
  read_installed
  if ! all_whole "${names[@]}"; then
    apt_update
    install_packages "$LAYER" no "${names[@]}"
  fi
  write_apt_files
  write_repositories
  fetch_lists
  step_done repository
  finish
  printf '{"offered":%s,"packages":%s,"changed":"%s"}\n' "$(offered_json "${asked[@]}")" "$(packages_json "$LAYER")" "$CHANGED"
}

revert() {
  local path FILES
  take_lock
  ! is_anothers_step repository || { leave_untouched && return; }
  find_layer_files "$LAYER"
  for path in "${FILES[@]}"; do
    [[ $path != /etc/apt/sources.list.d/* ]] || remove_lists "$path"
    drop_file "$LAYER" "$path"
  done
  remove_packages "$LAYER"
  step_undone repository
  finish
  printf '{"kept":%s,"changed":"%s"}\n' "$(json_list "${KEPT[@]}")" "$CHANGED"
}

all_whole() {
  local name
  for name in "$@"; do is_whole "$name" || return 1; done
}

# find_repositories - URLS, and OURS[url] = its line, of those that nobody else has written down.
find_repositories() {
  local url suite list line theirs
  declare -gA OURS=()
  URLS=()
  while IFS= read -r line; do
    [[ -n $line ]] || continue
    IFS=$'\t' read -r url suite list _ <<<"$line"
    URLS+=("$url")
    theirs=$(other_entry "$url" "$suite" "$list")
    if [[ -n $theirs ]]; then
      ! is_unchecked "$ROOT$theirs" || die "$url with its signatures checked" "$theirs switches that off for it (trusted, allow-insecure or allow-weak)" \
        "whoever stands between could have anything installed here as root" \
        "take that option or the entry out of $theirs; without the entry this program writes its own, with the known key"
      log "$url is in $theirs already: that entry is used"
    else
      OURS[$url]=$line
    fi
  done <<<"$REPOSITORIES"
}

# drop_others - what an earlier run wrote, and isn't wanted any more, or somebody else has by now.
drop_others() {
  local path url list keyring wanted=$'\n' FILES
  for url in "${!OURS[@]}"; do
    IFS=$'\t' read -r _ _ list _ _ _ keyring <<<"${OURS[$url]}"
    wanted+=$list$'\n'$keyring$'\n'
  done
  while IFS=$'\t' read -r path _; do wanted+=$path$'\n'; done <<<"$APT_FILES"
  find_layer_files "$LAYER"
  for path in "${FILES[@]}"; do
    [[ $wanted == *$'\n'$path$'\n'* ]] || drop_file "$LAYER" "$path"
  done
}

write_apt_files() {
  local path content
  while IFS=$'\t' read -r path content; do
    [[ -z $path ]] || put_file "$LAYER" "$path" 0644 "$(printf '%b' "$content")"
  done <<<"$APT_FILES"
}

write_repositories() {
  local url list line key fingerprint keyring _
  for url in "${!OURS[@]}"; do
    IFS=$'\t' read -r _ _ list line key fingerprint keyring <<<"${OURS[$url]}"
    take_key "$key" "$fingerprint" "$keyring"
    put_file "$LAYER" "$list" 0644 "$line"
  done
}

# fetch_lists - unless they were fetched a short while ago, and nothing that matters to them has changed since.
fetch_lists() {
  local path url fresh FILES
  fresh=$(find "$LOGS/updated" -mmin "-$LISTS_MINUTES" 2>/dev/null) || :
  find_layer_files "$LAYER"
  for path in "${FILES[@]}"; do
    [[ -z $fresh || ! $ROOT$path -nt $LOGS/updated ]] || fresh=
  done
  for url in "${URLS[@]}"; do
    compgen -G "$(lists_of "$url")" >/dev/null || fresh=
  done
  [[ -z $fresh ]] || return 0
  apt_update "${URLS[@]}"
  : >"$LOGS/updated"
}

# lists_of URL - a pattern of what apt has fetched from it, by apt's way of making a file's name of an address.
lists_of() {
  local name=${1#*://}
  name=${name//_/%5f}
  printf '%s/var/lib/apt/lists/%s_*' "$ROOT" "${name//\//_}"
}

# remove_lists LIST - what apt has fetched for the repository in it: nobody else has an entry for that.
remove_lists() {
  local url
  url=$(entries_of "$ROOT$1" | cut -d ' ' -f 1)
  # shellcheck disable=SC2046 # a pattern
  [[ -z $url ]] || rm -f $(lists_of "$url")
  rm -f "$LOGS/updated"
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
