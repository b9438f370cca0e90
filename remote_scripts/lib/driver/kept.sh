#!/usr/bin/env bash
# A driver that is to be replaced: its packages, or NVIDIA's installer of it, kept on the disk; and put back.
# Needs: driver, driver/modules, driver/packages, driver/run, packages
#
# STATE/update: `phase` (driver/trial.sh); `driver`: version and flavour, between them a tab; `packages`: a line for each, NAME VERSION MARK
# (auto or manual); `kernels` that had its modules; `note`, `run`: copies of STATE/nvidia-driver and STATE/nvidia-run; `blacklist`: ours was
# there; `loaded`, `worked`: it was loaded, and answered; `lacking`: libraries that were demanded of it, and weren't there; `lost`: what could not be kept; the packages' files, or the installer.
#
# STATE/given-up: the version of an update that was given up after a boot, for the next reading: a line of drift.
#
# GIVEN_UP, a file of apt's, holds the packages that were put back at their version: the pin of the settings' version would have the next
# upgrade by hand install what has failed. It goes with the next try.
#
# Gives: enter_phase PHASE, close_update; let_go; is_worth_keeping, keep_driver, kept_version, restore_driver; serves_cards LOG;
#   in_shell_of_its_own COMMAND, failure_part wanted|found|why|next.
# Variables: those of nvidia_driver.sh, LAYER.
UPDATE=/var/lib/homelab/update
# Before homelab-nvidia by its name: of several pins for a version, the first counts (apt_preferences(5)).
GIVEN_UP=/etc/apt/preferences.d/homelab-given-up

enter_phase() { printf '%s\n' "$1" | write_atomically "$UPDATE/phase" 0600; }

# close_update - without a phase the rest is litter.
close_update() {
  remove_file "$UPDATE/phase"
  rm -rf "$STATE/update"
}

kept_version() { cut -f 1 "$STATE/update/driver"; }
serves_cards() { run_streamed 60 "$1" nvidia-smi -L; }

# in_shell_of_its_own COMMAND - what it answers goes to LOGS/answered; the message of one that fails, to LOGS/failure. In the background,
# where an error ends it as it ends a script. (It has the lock, too: should only this one be killed, the next run waits for it.)
in_shell_of_its_own() {
  local child
  (
    trap 'status=$?; [[ $status == 0 || $status == 99 ]] || unexpected "$status"' EXIT
    "$1"
  ) >"$LOGS/answered" &
  child=$!
  wait "$child" && return 0
  mv -f "$LOGS/answered" "$LOGS/failure"
  return 1
}

# failure_part wanted|found|why|next - of the message in LOGS/failure.
failure_part() {
  awk -v part="$1" '
    /^wanted: / && now == "" { now = "wanted"; sub(/^wanted: /, "") }
    /^found:  / && now == "wanted" { now = "found"; sub(/^found:  /, "") }
    /^why:    / && now == "found" { now = "why"; sub(/^why:    /, "") }
    /^next:   / && now == "why" { now = "next"; sub(/^next:   /, "") }
    now == part { print }' "$LOGS/failure"
}

# is_worth_keeping - is a driver there, whole, that is to be replaced by another, or by itself with more libraries? After is_wanted and
# stay_at_version. That a kernel lacks the module of the wanted version replaces nothing.
is_worth_keeping() {
  local found=''
  [[ -n $VERSION && -x $ROOT/usr/bin/nvidia-smi && -z $(dpkg --audit 2>/dev/null) ]] || return 1
  if [[ $TARGET != lxc ]]; then
    found=$(kernels_with "$VERSION")
    [[ -n $found ]] || return 1
  fi
  is_version_wanted || return 0
  has_libraries || only_adds || return 0
  [[ $TARGET != lxc && $(module_flavour "$(head -n 1 <<<"$found")") != "$FLAVOUR" ]]
}

# kernels_with VERSION - those of TARGET that have its module.
kernels_with() {
  local kernel
  while IFS= read -r kernel; do
    [[ $(module_version "$kernel") != "$1" ]] || printf '%s\n' "$kernel"
  done < <(kernels_of "$TARGET")
}

# keep_driver - what is there, before anything is changed. What can't be had any more is named (`lost`), and the update goes on without a
# way back: a distribution's archive has one version at a time, and its updates would be refused for ever.
keep_driver() {
  local version flavour='' with_it
  close_update
  version=$(library_version) with_it=$(kernels_with "$version")
  [[ $TARGET == lxc ]] || flavour=$(module_flavour "$(head -n 1 <<<"$with_it")")
  log "keeping the driver $version, for the case that $DRIVER can't be had"
  need_dir "$STATE/update"
  chmod 0700 "$STATE/update"
  enter_phase keeping
  printf '%s\t%s\n' "$version" "$flavour" >"$STATE/update/driver"
  printf '%s\n' "$with_it" >"$STATE/update/kernels"
  [[ ! -e $STATE/nvidia-driver ]] || cp "$STATE/nvidia-driver" "$STATE/update/note"
  [[ ! -e $STATE/files/$LAYER$BLACKLIST ]] || : >"$STATE/update/blacklist"
  if [[ $(nvidia_version) == "$version" ]]; then
    : >"$STATE/update/loaded"
    ! serves_cards "$LOGS/serves" || : >"$STATE/update/worked"
  fi
  lacking_libraries >"$STATE/update/lacking"
  : >"$STATE/update/lost"
  keep_packages
  [[ -z $(run_version) ]] || keep_run
  [[ ! -s $STATE/update/lost ]] || log "it could not be put back: no repository and no cache has $(paste -s -d ' ' "$STATE/update/lost")"
  sync -f "$STATE/update"
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

# let_go - another version may be installed again.
let_go() { drop_file "$LAYER" "$GIVEN_UP"; }

# package_file FOLDER NAME VERSION - as apt calls a package's file; nothing where it isn't there.
package_file() { compgen -G "$1/$2_${3//:/%3a}_*.deb" | head -n 1 || :; }

keep_packages() {
  local name version mark manual file=$LOGS/apt cached fetched=()
  declare -A offered=()
  read_installed
  : >"$STATE/update/packages"
  manual=$'\n'$(apt-mark showmanual)$'\n'
  for name in "${!WHOLE[@]}"; do
    [[ $name =~ $FAMILY ]] || continue
    mark=auto
    [[ $manual != *$'\n'$name$'\n'* ]] || mark=manual
    printf '%s\t%s\t%s\n' "$name" "${WHOLE[$name]}" "$mark" >>"$STATE/update/packages"
  done
  [[ -s $STATE/update/packages ]] || return 0
  while read -r name _ version _; do
    offered["$name $version"]=yes
  done < <(cut -f 1 "$STATE/update/packages" | xargs -r apt-cache madison 2>/dev/null | grep 'Packages$')
  while IFS=$'\t' read -r name version _; do
    cached=$(package_file "$ROOT/var/cache/apt/archives" "$name" "$version")
    if [[ -n ${offered["$name $version"]:-} ]]; then
      fetched+=("$name=$version")
    elif [[ -n $cached ]]; then
      cp "$cached" "$STATE/update/"
    else
      printf '%s=%s\n' "$name" "$version" >>"$STATE/update/lost"
    fi
  done <"$STATE/update/packages"
  # Without all of them there is no way back, and the others are of no use.
  [[ ! -s $STATE/update/lost ]] && ((${#fetched[@]} > 0)) || return 0
  (cd "$STATE/update" && apt_get "$file" download "${fetched[@]}") ||
    explain "$file" "the packages of the driver that is there, kept: ${fetched[*]}" "an update that fails is undone with them"
  while IFS=$'\t' read -r name version _; do
    [[ -s $(package_file "$STATE/update" "$name" "$version") ]] || die "$name $version, kept in $UPDATE" "it is not there$(full_places)" \
      "an update that fails is undone with it" "make room on the disk, then run \`pulumi up\` again"
  done <"$STATE/update/packages"
}

# keep_run - of an installer that this program ran it is noted where it came from; where somebody else's came from nobody knows.
keep_run() {
  local version url sha256 file
  version=$(run_version)
  { IFS= read -r _ && IFS= read -r url && IFS= read -r sha256; } 2>/dev/null <"$STATE/nvidia-run" || url=''
  if [[ -z $url || $(head -n 1 "$STATE/nvidia-run") != "$version" ]]; then
    printf "NVIDIA's-installer=%s\n" "$version" >>"$STATE/update/lost"
    return 0
  fi
  cp "$STATE/nvidia-run" "$STATE/update/run"
  file=$(run_file "$UPDATE" "$version")
  fetch_installer "$file" "$version" "$url" "$sha256"
}

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
  ((${#GONE[@]} == 0)) || apt_get "$file" purge "${GONE[@]}" || explain "$file" "to remove ${GONE[*]}" "they are of the update that failed"
  ((${#auto[@]} == 0)) || run_apt "$LOGS/mark" apt-mark auto "${auto[@]}" || log "apt-mark auto ${auto[*]} failed"
  ((${#manual[@]} == 0)) || run_apt "$LOGS/mark" apt-mark manual "${manual[@]}" || log "apt-mark manual ${manual[*]} failed"
  read_installed
  settle_record "$LAYER"
}

# put_run_back VERSION - by its installer, which was kept.
put_run_back() {
  local RUN_VERSION RUN_URL RUN_SHA256 RUN_ARGUMENTS
  { IFS= read -r RUN_VERSION && IFS= read -r RUN_URL && IFS= read -r RUN_SHA256 && IFS= read -r RUN_ARGUMENTS; } <"$STATE/update/run"
  [[ $(run_version) != "$1" ]] || return 0
  fetch_installer "$(run_file "$UPDATE" "$1")" "$RUN_VERSION" "$RUN_URL" "$RUN_SHA256"
  run_installer "$(run_file "$UPDATE" "$1")"
}
