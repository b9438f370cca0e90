#!/usr/bin/env bash
# A driver that is to be replaced: its packages, or NVIDIA's installer of it, kept on the disk.
# Needs: driver, driver/modules, driver/run, driver/update, packages
#
# Gives: is_worth_keeping, keep_driver (driver/update.sh says what is where). Variables: those of nvidia_driver.sh, LAYER.

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
  [[ $TARGET != lxc ]] || return 1
  find_module "${found%%$'\n'*}"
  [[ $MODULE_FLAVOUR != "$FLAVOUR" ]]
}

# kernels_with VERSION - those of TARGET that have its module.
kernels_with() {
  local kernel
  find_kernels "$TARGET"
  for kernel in "${KERNELS[@]}"; do
    find_module "$kernel"
    [[ $MODULE_VERSION != "$1" ]] || printf '%s\n' "$kernel"
  done
}

# keep_driver - what is there, before anything is changed. What can't be had any more is named (`lost`), and the update goes on without a
# way back: a distribution's archive has one version at a time, and its updates would be refused for ever.
keep_driver() {
  local version with_it MODULE_FLAVOUR=''
  close_update
  version=$(library_version) with_it=$(kernels_with "$version")
  [[ $TARGET == lxc ]] || find_module "${with_it%%$'\n'*}"
  log "keeping the driver $version, in case $DRIVER can't be had"
  need_dir "$STATE/update"
  chmod 0700 "$STATE/update"
  enter_phase keeping
  printf '%s\t%s\n' "$version" "$MODULE_FLAVOUR" >"$STATE/update/driver"
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
  [[ ! -s $STATE/update/lost ]] || log "note: the driver from before could not be put back: no repository and no cache has $(paste -s -d ' ' "$STATE/update/lost")"
  sync -f "$STATE/update"
}

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
