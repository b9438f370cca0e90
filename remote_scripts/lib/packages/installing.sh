#!/usr/bin/env bash
# Packages installed for a layer.
# Needs: packages/records
#
# Gives: install_packages LAYER yes|no NAME[=VERSION]... -> CHANGED; explain_install LOG WHAT.

# install_packages LAYER yes|no NAME[=VERSION]... - `yes`: with what they recommend. VERSION may be a pattern. What is there at its version
# stays untouched, and nobody else's packages are removed (see MAY_REMOVE); a version may go down. Sets CHANGED.
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

# explain_install LOG WHAT
explain_install() {
  # What isn't known to apt may only be so as its lists couldn't be fetched.
  recognise "$1"
  if [[ -s $UPDATE_LOG && ${SYMPTOM[0]:-} == package-not-found ]]; then
    explain "$UPDATE_LOG" "the lists of packages, by apt-get update" "$2 is to be installed from them"
  fi
  explain "$1" "to install $2" "what follows needs it"
}
