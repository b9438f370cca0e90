#!/usr/bin/env bash
# A repository's key: taken only if it is the known one.
# Needs: packages/download, files
#
# Gives: take_key URL FINGERPRINT KEYRING; fingerprints FILE. Variables: LAYER.

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
    "if a mirror or a proxy is in between, have it pass the key on as it is; if NVIDIA has replaced its key, you need a newer release of this program"
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
