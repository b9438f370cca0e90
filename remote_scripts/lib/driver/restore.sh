#!/usr/bin/env bash
# A driver that was kept is put back, from wherever an update has come to. That takes no network.
# Needs: driver, driver/modules, driver/packages, driver/run, driver/update, packages
#
# Gives: restore_driver. Variables: those of nvidia_driver.sh, LAYER.

# restore_driver - what was kept, from wherever an update has come to; answers, in words, what there is then.
restore_driver() {
  local VERSION FLAVOUR kept_run='' kernel said
  IFS=$'\t' read -r VERSION FLAVOUR <"$STATE/update/driver"
  log "putting the driver $VERSION back"
  rm -rf "$ROOT$DOWNLOADS"
  repair_packages
  [[ ! -e $STATE/update/run ]] || kept_run=$(head -n 1 "$STATE/update/run")
  # Of one version it may have been run with other arguments since.
  if [[ -z $kept_run || $(run_version) != "$kept_run" ]] || ! cmp -s "$STATE/nvidia-run" "$STATE/update/run"; then remove_run; fi
  put_packages_back
  hold_back
  [[ -z $kept_run ]] || put_run_back "$kept_run"
  while IFS= read -r kernel; do
    [[ -z $kernel ]] || build_for "$kernel"
  done <"$STATE/update/kernels"
  if [[ ! -e $STATE/update/blacklist && -e $STATE/files/$LAYER$BLACKLIST ]]; then
    pending nvidia-initramfs
    drop_file "$LAYER" "$BLACKLIST"
    finish
  fi
  [[ $TARGET == lxc ]] || renew_initramfs
  if [[ -e $STATE/update/note ]]; then
    copy_atomically "$STATE/update/note" /var/lib/homelab/nvidia-driver
  else
    remove_file /var/lib/homelab/nvidia-driver
  fi
  said="its libraries"
  [[ $TARGET == lxc ]] || said+=", and its modules for $(paste -s -d ' ' "$STATE/update/kernels")"
  [[ $(library_version) == "$VERSION" ]] || die "the libraries of the driver $VERSION, put back" "they are $(library_version)" \
    "they must be of the modules' version" "see what is installed: \`dpkg -l '*nvidia*'\`"
  if [[ $TARGET == lxc ]]; then
    in_use_again_in_container
  else
    in_use_again
  fi
  printf '%s\n' "$said"
}

put_packages_back() {
  local name version mark file=$LOGS/apt files=() gone=() auto=() manual=()
  declare -A was=()
  read_installed
  while IFS=$'\t' read -r name version mark; do
    was[$name]=$version
    if [[ $mark == auto ]]; then auto+=("$name"); else manual+=("$name"); fi
    [[ ${WHOLE[$name]:-} == "$version" ]] || files+=("$(package_file "$STATE/update" "$name" "$version")")
  done <"$STATE/update/packages"
  for name in "${!PRESENT[@]}" "${!LEFT[@]}"; do
    [[ ! $name =~ $FAMILY || -n ${was[$name]:-} ]] || ! is_ours "$name" || gone+=("$name")
  done
  if ((${#files[@]} > 0)); then
    [[ $TARGET != host ]] || pending nvidia-initramfs
    # In one go with the removal of those that came instead: packages of two versions have files of the same names.
    for name in "${gone[@]}"; do [[ -z ${PRESENT[$name]:-} ]] || files+=("$name-"); done
    simulated "$file" install --allow-downgrades --no-install-recommends "${files[@]}" || explain_install "$file" "${files[*]##*/}"
    require_others_kept "$file" "to put back ${files[*]##*/}"
    record_change "$LAYER" "$file"
    apt_get "$file" install --allow-downgrades --no-install-recommends "${files[@]}" || explain_install "$file" "${files[*]##*/}"
    read_installed
  fi
  leave_what_others_need "$file" "${gone[@]}"
  ((${#GONE[@]} == 0)) || apt_get "$file" purge "${GONE[@]}" || explain "$file" "to remove ${GONE[*]}" "they belong to the update that failed"
  ((${#auto[@]} == 0)) || run_apt "$LOGS/mark" apt-mark auto "${auto[@]}" || log "apt-mark auto ${auto[*]} failed"
  ((${#manual[@]} == 0)) || run_apt "$LOGS/mark" apt-mark manual "${manual[@]}" || log "apt-mark manual ${manual[*]} failed"
  read_installed
  settle_record "$LAYER"
}

# hold_back - what was put back stays at its version.
hold_back() {
  local pins
  [[ -s $STATE/update/packages ]] || return 0
  # Above the pin of what is wanted.
  pins=$(awk -F'\t' '{ printf "Package: %s\nPin: version %s\nPin-Priority: 1002\n\n", $1, $2 }' "$STATE/update/packages")
  put_file "$LAYER" "$GIVEN_UP" 0644 "$pins"
  finish
}

# put_run_back VERSION - by its installer, which was kept.
put_run_back() {
  local RUN_VERSION RUN_URL RUN_SHA256 RUN_ARGUMENTS
  { IFS= read -r RUN_VERSION && IFS= read -r RUN_URL && IFS= read -r RUN_SHA256 && IFS= read -r RUN_ARGUMENTS; } <"$STATE/update/run"
  [[ $(run_version) != "$1" ]] || return 0
  fetch_installer "$(run_file "$UPDATE" "$1")" "$RUN_VERSION" "$RUN_URL" "$RUN_SHA256"
  run_installer "$(run_file "$UPDATE" "$1")"
}

# in_use_again - adds to `said`.
in_use_again() {
  local loaded DAEMON_STOPPED=no
  loaded=$(nvidia_version)
  if [[ -n $loaded && $loaded != "$VERSION" ]] && ! unload; then
    said+="; $loaded is still loaded and in use: $VERSION is loaded at the next boot"
    return 0
  fi
  if [[ -z $(nvidia_version) && -e $STATE/update/loaded ]]; then load_module; fi
  start_daemon
  [[ $(nvidia_version) == "$VERSION" && -e $STATE/update/worked ]] || return 0
  serves_cards "$LOGS/serves" || explain "$LOGS/serves" "the driver $VERSION, put back, answering nvidia-smi" "it did before the update"
  said+="; nvidia-smi answers"
}

in_use_again_in_container() {
  local loaded
  loaded=$(nvidia_version)
  if [[ -n $loaded && $loaded != "$VERSION" ]]; then
    said+="; the host's driver is $loaded, with which they don't work"
  elif [[ -e $STATE/update/worked || -e $STATE/update/awaited ]]; then
    serves_cards "$LOGS/serves" || explain "$LOGS/serves" "the libraries of $VERSION, put back, answering nvidia-smi" "they did before the update"
    said+="; nvidia-smi answers"
  fi
}
