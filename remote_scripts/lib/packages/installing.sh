#!/usr/bin/env bash
# Packages installed for a layer.
# Needs: packages/records
#
# Gives: install_packages LAYER yes|no NAME[=VERSION]... -> CHANGED; explain_install LOG WHAT.

# install_packages LAYER yes|no NAME[=VERSION]... - `yes`: with what they recommend. VERSION may be a pattern. What is there at its version
# stays untouched, and nobody else's packages are removed; a version may go down. Sets CHANGED.
install_packages() {
  local layer=$1 recommends=$2 package missing=() options=() file=$LOGS/apt
  shift 2
  read_installed
  for package in "$@"; do is_whole "$package" || missing+=("$package"); done
  if ((${#missing[@]} == 0)); then
    settle_record "$layer"
    return 0
  fi
  repair_packages
  [[ $recommends == yes ]] || options=(--no-install-recommends)
  simulated "$file" install --allow-downgrades "${options[@]}" "${missing[@]}" || explain_install "$file" "${missing[*]}"
  require_others_kept "$file" "to install ${missing[*]}"
  require_locked "$file"
  record_change "$layer" "$file"
  CHANGED=yes
  log "installing ${missing[*]}"
  # It fetches gigabytes, too: a slow line mustn't end it while it unpacks.
  if ! INSTALL_SECONDS=$((${DOWNLOAD_SECONDS:-1800} + ${INSTALL_SECONDS:-3600})) \
    apt_get "$file" install --allow-downgrades "${options[@]}" "${missing[@]}"; then
    read_installed
    settle_record "$layer"
    explain_install "$file" "${missing[*]}"
  fi
  read_installed
  settle_record "$layer"
  for package in "${missing[@]}"; do
    is_whole "$package" || die "$package, installed" "apt-get succeeded, and it is ${PRESENT[${package%%=*}]:-not there}" \
      "what follows needs it" "see \`apt-cache policy ${package%%=*}\`, then run \`pulumi up\` again"
  done
}

# require_locked SIMULATION - what is going to be installed is what the lock file has: the version, and the file, by the repository's index. With
# that apt itself compares what it fetches.
require_locked() {
  local name version sum new found
  declare -A locked=() sums=()
  [[ -n ${LOCKED:-} ]] || return 0
  while read -r name version sum; do
    locked[$name]=$version sums[$name]=$sum
  done <<<"$LOCKED"
  while IFS=$'\t' read -r name _ new; do
    [[ -n ${locked[$name]:-} && $new != - ]] || continue
    [[ $new == "${locked[$name]}" ]] || die "$NAME: $name ${locked[$name]}, as the lock file has it" "apt would install $new" \
      "the repositories no longer have the locked version, or another package needs a newer one" \
      "\`python -m homelab lock --release $NAME\`, then \`pulumi up\` and \`python -m homelab lock\`; or give apt a repository that has it"
    found=$(apt-cache show "$name=$new" 2>/dev/null </dev/null | sed -n 's/^SHA256: //p' | head -n 1) || :
    [[ $found == "${sums[$name]}" ]] || die "$NAME: $name $new with the SHA-256 ${sums[$name]}, as the lock file has it" \
      "the repository has ${found:-none}" "it is another file under the same version" \
      "find out why, before you install it: a mirror that was changed, or a package that was built anew; \`python -m homelab lock --release $NAME\` forgets the old one"
  done < <(announced "$1")
}

# explain_install LOG WHAT
explain_install() {
  # What isn't known to apt may only be so as its lists couldn't be fetched.
  recognise "$1"
  if [[ -s $UPDATE_LOG && ${SYMPTOM[0]:-} == package-not-found ]]; then
    explain "$UPDATE_LOG" "the lists of packages, by apt-get update" "$2 is to be installed from them"
  fi
  explain "$1" "to install $2" "what follows needs it"
}
