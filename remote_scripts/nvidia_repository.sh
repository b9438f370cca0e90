#!/usr/bin/env bash
# NVIDIA's repositories, each with a key whose fingerprint is known; which versions may be installed, and which not by themselves.
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
  local path
  take_lock
  while IFS= read -r path; do
    [[ $path != /etc/apt/sources.list.d/* ]] || remove_lists "$path"
    drop_file "$LAYER" "$path"
  done < <(layer_files "$LAYER")
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
  local url line theirs
  declare -gA OURS=()
  URLS=()
  while IFS= read -r line; do
    [[ -n $line ]] || continue
    url=${line%%$'\t'*}
    URLS+=("$url")
    theirs=$(other_entry "$url" "$(cut -f 2 <<<"$line")" "$(cut -f 3 <<<"$line")")
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

# is_unchecked FILE - has it an entry whose packages apt takes without a good signature?
is_unchecked() {
  local unsigned='(trusted|allow-insecure|allow-weak|allow-downgrade-to-insecure)'
  if [[ $1 == *.sources ]]; then
    grep -qiE "^$unsigned:[[:space:]]*(yes|true|1|on|with)" "$1"
  else
    grep -qiE "^[[:space:]]*deb[[:space:]]+\[[^]]*\b$unsigned=(yes|true|1|on|with)" "$1"
  fi
}

# other_entry URL SUITE LIST - the file that has an entry for this repository, if it isn't LIST.
other_entry() {
  local file
  for file in "$ROOT"/etc/apt/sources.list "$ROOT"/etc/apt/sources.list.d/*.list "$ROOT"/etc/apt/sources.list.d/*.sources; do
    [[ -r $file && $file != "$ROOT$3" ]] || continue
    if entries_of "$file" | grep -qxF -- "${1%/} $2"; then
      printf '%s' "${file#"$ROOT"}"
      return 0
    fi
  done
}

# entries_of FILE - ADDRESS SUITE of each enabled entry for binary packages, in either of apt's formats.
entries_of() {
  if [[ $1 == *.sources ]]; then
    awk -v RS= '{
      types = uris = suites = ""; enabled = 1; n = split($0, lines, "\n"); field = ""
      for (i = 1; i <= n; i++) {
        line = lines[i]
        if (line ~ /^#/) continue
        if (line ~ /^[^ \t:]+:/) { field = tolower(substr(line, 1, index(line, ":") - 1)); line = substr(line, index(line, ":") + 1) }
        if (field == "types") types = types " " line
        if (field == "uris") uris = uris " " line
        if (field == "suites") suites = suites " " line
        if (field == "enabled" && tolower(line) ~ /no|false|0/) enabled = 0
      }
      if (!enabled || (types " ") !~ /[ \t]deb[ \t]/) next
      nu = split(uris, u, /[ \t]+/); ns = split(suites, s, /[ \t]+/)
      for (i = 1; i <= nu; i++) for (j = 1; j <= ns; j++) if (u[i] != "" && s[j] != "") print u[i], s[j]
    }' "$1"
  else
    sed -nE 's/#.*//; s/^[[:space:]]*deb[[:space:]]+(\[[^]]*\][[:space:]]+)?([^[:space:]]+)[[:space:]]+([^[:space:]]+).*/\2 \3/p' "$1"
  fi | sed -E "s#\\\$\\(ARCH\\)#$(dpkg --print-architecture)#g; s#/+ # #"
}

# drop_others - what an earlier run wrote, and isn't wanted any more, or somebody else has by now.
drop_others() {
  local path url wanted=$'\n'
  for url in "${!OURS[@]}"; do wanted+=$(cut -f 3,7 --output-delimiter=$'\n' <<<"${OURS[$url]}")$'\n'; done
  wanted+=$(cut -f 1 <<<"$APT_FILES")$'\n'
  while IFS= read -r path; do
    [[ $wanted == *$'\n'$path$'\n'* ]] || drop_file "$LAYER" "$path"
  done < <(layer_files "$LAYER")
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

# take_key URL FINGERPRINT KEYRING - fetched, looked at, and put in place only if it is that key and no other.
take_key() {
  local file=/run/homelab/key found
  if [[ -e $STATE/files/$LAYER$3 && $(file_state "$LAYER" "$3") == ok && $(fingerprints "$3") == "$2" ]]; then
    return 0
  fi
  rm -f "$ROOT$file" "$ROOT$file".*
  download "$1" "$file"
  found=$(fingerprints "$file" | paste -sd ' ')
  [[ $found == "$2" ]] || die "the repository's key, with the fingerprint $2" \
    "$1 has ${found:-no key at all}" \
    "whoever holds another key could have anything installed here as root; it wasn't taken" \
    "if a mirror or a proxy stands between, have it pass the key on as it is; a key that NVIDIA has replaced takes a newer release of this program"
  gpg_quietly --yes --dearmor -o "$ROOT$file.gpg" "$ROOT$file" || die "the key of $1 in binary form" "gpg --dearmor failed" \
    "apt reads it so" "see the log above"
  put_copy "$LAYER" "$3" 0644 "$ROOT$file.gpg"
  rm -f "$ROOT$file" "$ROOT$file".*
}

# fingerprints FILE - of every primary key in it.
fingerprints() {
  gpg_quietly --show-keys --with-colons "$ROOT$1" | awk -F: '$1 == "pub" { primary = 1 } $1 == "fpr" && primary { print $10; primary = 0 }'
}

# gpg_quietly ARGUMENT... - in a home of its own, which goes again.
gpg_quietly() {
  [[ -d $LOGS/gnupg ]] || mkdir -m 0700 "$LOGS/gnupg"
  GNUPGHOME=$LOGS/gnupg gpg --batch --quiet --no-tty "$@" 2>/dev/null </dev/null
}

# fetch_lists - unless they were fetched a short while ago, and nothing that matters to them has changed since.
fetch_lists() {
  local path url fresh
  fresh=$(find "$LOGS/updated" -mmin "-$LISTS_MINUTES" 2>/dev/null) || :
  while IFS= read -r path; do
    [[ -z $fresh || ! $ROOT$path -nt $LOGS/updated ]] || fresh=
  done < <(layer_files "$LAYER")
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

"$1" </dev/null
exit
