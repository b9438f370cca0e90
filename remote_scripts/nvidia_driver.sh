#!/usr/bin/env bash
# NVIDIA's driver of one branch or version: from packages or NVIDIA's installer; modules and libraries, in a container the libraries alone.
#
# Arguments: TARGET (vm, host or lxc), DRIVER (branch or version), FLAVOUR (open or proprietary; empty for lxc), SOURCE (packages, run or
#   either: packages if the repositories have them), PREREQUISITES, PACKAGES (separated by spaces, NAME=VERSION), RECOMMENDS (yes or no),
#   RUN_VERSION, RUN_URL, RUN_SHA256, RUN_UNPINNED (the message where that is not known, a line for each part), RUN_PREREQUISITES,
#   RUN_ARGUMENTS (of the installer, where it may be used), PERSISTENCE (a unit; for a host), those of packages.sh, GENERATION (no part in
#   what happens).
# Changes: packages, or what the installer puts there; DKMS's modules; a blacklist for nouveau where the packages bring none; on a host a
#   service that keeps the cards initialised. The module is loaded where nothing is in its way.
# Undone by `revert`: exactly these, and what was replaced comes back. A driver that was there and is what is wanted is left as it is.
# Verbs: apply, revert.
# Answer: {"version","source":"packages|run|found","packages":[what was added],"reboot":"yes|no|no-module","why","changed"}; of revert
#   {"kept":[packages],"changed"}. no-module: a container has none of its own.

LAYER=nvidia-driver
BLACKLIST=/etc/modprobe.d/homelab-nvidia.conf
SERVICE=homelab-nvidia-persistence.service
DOWNLOADS=/var/lib/homelab/downloads
# The driver's own packages: what may be replaced by another version, flavour or source of it. Not the container toolkit, not CUDA.
FAMILY='^(nvidia-(driver|dkms|kernel|open|headless|utils|compute|firmware|smi|modprobe|persistenced|settings|alternative|legacy|installer|support|vdpau|egl|opencl|vulkan|xconfig|prime|fabricmanager|imex|suspend|no-dkms)|libnvidia-([^c]|c[^o]|co[^n])|libcuda1|libcudadebugger1|libnvcuvid1|libnvoptix1|cuda-drivers|firmware-nvidia-gsp|xserver-xorg-video-nvidia|linux-(modules|objects|signatures)-nvidia-)'

apply() {
  take_lock
  MAY_REMOVE=$FAMILY
  read_driver_note
  if is_wanted; then
    source=${NOTED_SOURCE:-found}
    log "the driver $VERSION is there as it is wanted"
    read_installed
    settle_record "$LAYER"
  else
    install_prerequisites
    choose_source
    finish # What is put in place from here on is of use to the next run, should this one fail.
    if [[ $source == packages ]]; then install_from_packages; else install_from_run; fi
    VERSION=$(library_version)
    fits "$VERSION" || die "NVIDIA's driver $DRIVER" "${VERSION:-no driver} is installed by: ${PACKAGES:-the installer of $RUN_VERSION}" \
      "a branch that has ended leads to the next one's packages, in a distribution's own archive" \
      "set nvidia.driver to a branch that is maintained, or nvidia.source: run"
  fi
  local reboot=no-module why="a container has no kernel of its own"
  if [[ $TARGET != lxc ]]; then
    build_modules
    renew_initramfs
    note_driver
    persist
    load
  else
    require_host_version
    note_driver
  fi
  step_done driver
  finish
  printf '{"version":%s,"source":"%s","packages":%s,"reboot":"%s","why":%s,"changed":"%s"}\n' "$(json_string "$VERSION")" "$source" \
    "$(packages_json "$LAYER")" "$reboot" "$(json_string "$why")" "$CHANGED"
}

# -- what is there ---------------------------------------------------------------------------------------------
note_driver() {
  need_dir "$STATE"
  printf '%s\t%s\t%s\t%s\n' "$VERSION" "$source" "$TARGET" "$FLAVOUR" | write_atomically /var/lib/homelab/nvidia-driver 0600
}

# -- installing ------------------------------------------------------------------------------------------------
install_prerequisites() {
  local package names wanted=()
  read -ra names <<<"$PREREQUISITES"
  read_installed
  for package in "${names[@]}"; do
    ! can_be_had "$package" || wanted+=("$package")
  done
  ((${#wanted[@]} == 0)) || install_packages "$LAYER" no "${wanted[@]}"
}

# can_be_had PACKAGE - no for headers of a kernel that no repository has, and that somebody has put there in another way. Without any it
# ends the run.
can_be_had() {
  local kernel
  [[ $1 =~ ^(linux|proxmox)-headers-([0-9].*)$ ]] || return 0
  kernel=${BASH_REMATCH[2]}
  if is_whole "$1" || [[ -n $(apt-cache madison "$1") ]]; then
    return 0
  fi
  [[ ! -e $ROOT/usr/lib/modules/$kernel/build && ! -L $ROOT/usr/lib/modules/$kernel/build ]] || {
    log "no repository has $1; the headers in /lib/modules/$kernel/build are used"
    return 1
  }
  die "headers of the kernel $kernel, the package $1" "no repository has it" "DKMS builds the driver's modules for that kernel with them" \
    "update that kernel to one whose headers are there (\`apt full-upgrade\`, a reboot), and remove the old one; or install its headers by hand"
}

# choose_source - sets `source`.
choose_source() {
  local package names
  source=$SOURCE
  [[ $SOURCE == either ]] || return 0
  source=packages
  read -ra names <<<"$PACKAGES"
  for package in "${names[@]}"; do
    is_offered "$package" || {
      source=run
      log "$package isn't offered: NVIDIA's installer is used"
      return 0
    }
  done
  if [[ $TARGET == lxc ]] && brings_modules "${names[@]}"; then
    source=run
    log "the packages would bring kernel modules, which have no place in a container: NVIDIA's installer is used"
  fi
}

# brings_modules NAME[=PATTERN]... - would apt install something of the kernel's with them?
brings_modules() {
  simulated "$LOGS/simulation.log" install --no-install-recommends --allow-downgrades "$@" || return 1
  announced "$LOGS/simulation.log" | awk -F'\t' '$3 != "-" && $1 ~ /dkms|^linux-(image|headers|modules|objects)|^nvidia-kernel-(source|open|support)/ { found = 1 } END { exit !found }'
}

is_offered() { # NAME=PATTERN
  local version
  while read -r version; do
    # shellcheck disable=SC2053 # a pattern, as apt takes it
    [[ $version != ${1#*=} ]] || return 0
  done < <(apt-cache madison "${1%%=*}" | awk '{ print $3 }')
  return 1
}

install_from_packages() {
  local names
  read -ra names <<<"$PACKAGES"
  remove_run
  # The packages renew the newest kernel's at most.
  if [[ $TARGET == host ]] || held_by_others; then
    pending nvidia-initramfs
  fi
  install_packages "$LAYER" "$RECOMMENDS" "${names[@]}"
  remove_old "$(library_version)"
}

# remove_old VERSION - packages of the driver that we added for another version, and that nothing needs any more; and what was left of those
# that made way.
remove_old() {
  local name old=() file=$LOGS/apt
  read_installed
  read_record "$LAYER"
  for name in "${!NOW[@]}"; do
    [[ ${BEFORE[$name]} == - && $name =~ $FAMILY ]] || continue
    if [[ -n ${LEFT[$name]:-} || (${PRESENT[$name]:-} =~ [0-9]{3}\.[0-9]+ && ${PRESENT[$name]} != *"$1"*) ]]; then
      old+=("$name")
    fi
  done
  leave_what_others_need "$file" "${old[@]}"
  ((${#GONE[@]} > 0)) || return 0
  log "removing what was of another version: ${GONE[*]}"
  apt_get "$file" purge "${GONE[@]}" || explain "$file" "to remove ${GONE[*]}" "they are of a driver that was replaced"
  read_installed
  settle_record "$LAYER"
}

install_from_run() {
  local names arguments message file=$DOWNLOADS/NVIDIA-Linux-x86_64-$RUN_VERSION.run out=$LOGS/installer
  if [[ -z $RUN_SHA256 ]]; then
    mapfile -t message <<<"$RUN_UNPINNED"
    die "${message[@]}"
  fi
  read -ra names <<<"$RUN_PREREQUISITES"
  install_packages "$LAYER" no "${names[@]}"
  fetch_installer "$file"
  remove_driver_packages
  [[ $(run_version) == "$RUN_VERSION" ]] || remove_run
  read -ra arguments <<<"$RUN_ARGUMENTS"
  [[ $TARGET == lxc ]] || clear_the_way
  note_run
  log "installing NVIDIA's driver $RUN_VERSION from its installer"
  # It unpacks more than a gigabyte, which /tmp and /run, in memory, may not have.
  mkdir -p "$ROOT$DOWNLOADS/unpacked"
  run_streamed "$INSTALL_SECONDS" "$out" env TMPDIR="$ROOT$DOWNLOADS/unpacked" sh "$ROOT$file" "${arguments[@]}" || explain_installer "$out"
  rm -rf "$ROOT$DOWNLOADS"
  CHANGED=yes
}

# fetch_installer FILE - with the checksum that was known before: whoever can replace the file can replace what is published beside it.
fetch_installer() {
  local found
  [[ -e $ROOT$1 ]] || download "$RUN_URL" "$1"
  found=$(sha256sum "$ROOT$1" | cut -d ' ' -f 1)
  [[ $RUN_SHA256 == "$found" ]] && return 0
  # The next run fetches it anew.
  rm -f "$ROOT$1"
  die "NVIDIA's installer $RUN_VERSION, with the checksum $RUN_SHA256" "$found at $RUN_URL" \
    "it runs as root, and wasn't run; it is incomplete, or a server, proxy or mirror has another file" \
    "run \`pulumi up\` again; if it stays, empty the proxy's cache or set another nvidia.mirror"
}

explain_installer() {
  local whole=$ROOT/var/log/nvidia-installer.log
  # Its own log says more than what it prints; the compiler's is another one.
  [[ ! -r $whole ]] || tail -n 60 "$whole" >>"$1"
  explain "$1" "NVIDIA's driver $RUN_VERSION, by its installer" "what follows needs it"
}

# clear_the_way - the installer, when nobody can be asked, gives up where a module is loaded or nouveau has the card: what it would have done
# at their place comes at the next boot.
clear_the_way() {
  blacklist_nouveau
  arguments+=(--no-check-for-alternate-installs)
  if [[ -n $(nvidia_version) ]]; then
    at_least 545.23.06 || unload || die "no module of NVIDIA's loaded, for the installer of $RUN_VERSION" "$(nvidia_version) is loaded and in use" \
      "installers before 545.23.06 replace no driver that is in use" "reboot it with what uses the card stopped, then run \`pulumi up\` again"
    ! at_least 545.23.06 || arguments+=(--allow-installation-with-running-driver)
  fi
  if held_by_others; then
    at_least 550.40.07 || die "the card free for NVIDIA's installer" "$HOLDER has it" "it is blacklisted now, and gives the card up at a boot" \
      "reboot it, then run \`pulumi up\` again"
    arguments+=(--no-nouveau-check --skip-module-load)
  fi
}

at_least() { [[ $(printf '%s\n' "$1" "$RUN_VERSION" | sort -V | head -n 1) == "$1" ]]; }

unload() { run_streamed 60 "$LOGS/unload" rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia || [[ -z $(nvidia_version) ]]; }

# blacklist_nouveau - the driver's packages bring that of their own.
blacklist_nouveau() {
  local changed=$CHANGED
  CHANGED=no
  FOLLOWED_BY=nvidia-initramfs
  put_file "$LAYER" "$BLACKLIST" 0644 "# NVIDIA's driver has the cards.
blacklist nouveau
blacklist nova_core
blacklist nova_drm
options nouveau modeset=0"
  [[ $changed == no ]] || CHANGED=yes
  finish
  FOLLOWED_BY=''
  renew_initramfs
}

# renew_initramfs - nouveau may be loaded from it, before /etc is seen.
renew_initramfs() {
  local kernels=()
  is_pending nvidia-initramfs || return 0
  [[ $TARGET != host ]] || kernels=(-k all)
  if command -v update-initramfs >/dev/null; then
    run_streamed "$INSTALL_SECONDS" "$LOGS/initramfs" update-initramfs -u "${kernels[@]}" ||
      explain "$LOGS/initramfs" "an initramfs with nouveau blacklisted" "nouveau would take the card at the next boot"
  fi
  done_with nvidia-initramfs
}

# remove_driver_packages - before NVIDIA's installer, which overwrites their files. What wasn't ours comes back with `revert`.
remove_driver_packages() {
  local name ours=() theirs=() file=$LOGS/apt
  read_installed
  for name in "${!PRESENT[@]}"; do
    [[ $name =~ $FAMILY ]] || continue
    if is_ours "$name"; then ours+=("$name"); else theirs+=("$name"); fi
  done
  ((${#ours[@]} + ${#theirs[@]} > 0)) || return 0
  simulated "$file" remove "${ours[@]}" "${theirs[@]}" || explain "$file" "to remove ${ours[*]} ${theirs[*]}" "NVIDIA's installer takes their place"
  require_others_kept "$file" "to replace the driver's packages by NVIDIA's installer"
  record_change "$LAYER" "$file"
  log "removing the driver's packages: ${ours[*]} ${theirs[*]}"
  # Somebody's configuration files stay; ours go.
  ((${#theirs[@]} == 0)) || apt_get "$file" remove "${theirs[@]}" || explain "$file" "to remove ${theirs[*]}" "NVIDIA's installer takes their place"
  ((${#ours[@]} == 0)) || apt_get "$file" purge "${ours[@]}" || explain "$file" "to remove ${ours[*]}" "NVIDIA's installer takes their place"
  CHANGED=yes
  read_installed
  settle_record "$LAYER"
}

# note_run - that what the installer puts there is ours, before it begins. Somebody's own that was there before is named, for `revert`.
note_run() { need_dir "$STATE" && printf '%s\n' "$RUN_VERSION" | write_atomically /var/lib/homelab/nvidia-run 0600; }

# remove_run - what the installer has put there, ours or somebody's: its files and those of packages have the same names.
remove_run() {
  [[ -n $(run_version) ]] || { remove_file /var/lib/homelab/nvidia-run && return 0; }
  [[ -e $STATE/nvidia-run ]] || log "replacing the driver $(run_version) that somebody installed with NVIDIA's installer; it doesn't come back"
  run_streamed "$INSTALL_SECONDS" "$LOGS/uninstall" "$ROOT/usr/bin/nvidia-uninstall" --silent ||
    explain "$LOGS/uninstall" "what NVIDIA's installer has installed, removed" "two drivers don't go together"
  remove_file /var/lib/homelab/nvidia-run
  CHANGED=yes
}

# -- modules ---------------------------------------------------------------------------------------------------
# build_modules - for every kernel that must have them, and looked at: what DKMS says, and whether the file is there.
build_modules() {
  local kernel status
  while IFS= read -r kernel; do
    has_module "$kernel" && continue
    log "building the modules of $VERSION for $kernel"
    run_streamed "$INSTALL_SECONDS" "$LOGS/dkms" dkms install -m "$(dkms_name)" -v "$VERSION" -k "$kernel" ||
      explain "$LOGS/dkms" "the modules of $VERSION, built for $kernel" "that kernel would come up without the driver"
    has_module "$kernel" || {
      status=$(within "$ASK_SECONDS" dkms status 2>/dev/null | grep -i nvidia)
      die "the modules of $VERSION ($FLAVOUR), installed for $kernel" \
        "modinfo: $(module_version "$kernel") $(module_flavour "$kernel"); dkms status: ${status:-nothing}" \
        "that kernel would come up without the driver" "build it by hand, \`dkms install nvidia/$VERSION -k $kernel\`, and read what it says"
    }
    CHANGED=yes
  done < <(kernels_of "$TARGET")
}

# dkms_name - what the packages call it: nvidia, nvidia-open, nvidia-current.
dkms_name() {
  local name
  name=$(within "$ASK_SECONDS" dkms status 2>/dev/null | sed -nE "s#^(nvidia[a-z-]*)(/|, )${VERSION//./\\.}[:,].*#\\1#p" | head -n 1)
  printf '%s' "${name:-nvidia}"
}

has_module() { [[ $(module_version "$1") == "$VERSION" && $(module_flavour "$1") == "$FLAVOUR" ]]; }

# held_by_others - does another driver have one of NVIDIA's cards? HOLDER names it.
held_by_others() {
  HOLDER=$(held_cards | awk 'NR == 1 { print $2 }')
  [[ -n $HOLDER ]]
}

# load - at once where that can be done; sets `reboot` and `why`.
load() {
  local loaded flavour
  loaded=$(nvidia_version) flavour=$(loaded_flavour)
  if [[ $loaded == "$VERSION" && $flavour == "$FLAVOUR" ]]; then
    reboot=no why="$VERSION is loaded"
  elif [[ -n $loaded ]]; then
    reboot=yes why="$loaded ($flavour) is loaded, $VERSION ($FLAVOUR) is installed"
  elif held_by_others; then
    reboot=yes why="$HOLDER has a card, and gives it up at a boot"
  else
    load_module
    reboot=no why="$VERSION was loaded: nothing else had the card"
  fi
  if [[ $reboot == no ]]; then
    modprobe nvidia-uvm 2>/dev/null || log "nvidia-uvm could not be loaded"
  fi
}

load_module() {
  local file=$LOGS/load lines
  lines=$(within "$ASK_SECONDS" dmesg 2>/dev/null | wc -l)
  run_streamed 120 "$file" modprobe nvidia && return 0
  # What the driver said of the card is in the kernel's log.
  within "$ASK_SECONDS" dmesg 2>/dev/null | tail -n "+$((lines + 1))" | grep -E 'NVRM|nvidia|signature' >>"$file" || :
  explain "$file" "the module nvidia of $VERSION, loaded" "nothing can use the card without it" \
    "look at \`dmesg | grep NVRM\`; is there a card of NVIDIA's, free of other drivers (\`lspci -nnk\`)?"
}

# persist - a host's cards stay initialised while nobody uses them: containers come and go.
persist() {
  local changed=$CHANGED link=/etc/systemd/system/multi-user.target.wants/$SERVICE
  [[ -n $PERSISTENCE ]] || return 0
  CHANGED=no
  put_file "$LAYER" "/etc/systemd/system/$SERVICE" 0644 "$PERSISTENCE"
  if [[ $CHANGED == yes || ! -L $ROOT$link ]]; then
    run_logged systemctl daemon-reload || :
    run_logged systemctl enable "$SERVICE" || die "$SERVICE enabled" "$OUTPUT" "the cards would be initialised anew by each program" \
      "mend what systemctl says, then run \`pulumi up\` again"
    changed=yes
  fi
  CHANGED=$changed
}

# -- a container -----------------------------------------------------------------------------------------------
require_host_version() {
  local loaded
  loaded=$(nvidia_version)
  [[ -z $loaded || $loaded == "$VERSION" ]] || die "the libraries of the host's driver, $loaded" "$VERSION is installed" \
    "they must be of one version, to the last digit" "run \`pulumi up --refresh\`: the host's version is read then"
}

# -- undoing ---------------------------------------------------------------------------------------------------
revert() {
  local unit=/etc/systemd/system/multi-user.target.wants/$SERVICE
  take_lock
  read_driver_note
  [[ ! -L $ROOT$unit ]] || run_logged systemctl disable "$SERVICE" || rm -f "$ROOT$unit"
  drop_file "$LAYER" "/etc/systemd/system/$SERVICE"
  [[ $CHANGED == no ]] || run_logged systemctl daemon-reload || :
  [[ ! -e $STATE/nvidia-run ]] || remove_run
  MAY_REMOVE=
  [[ $NOTED_TARGET != host ]] || pending nvidia-initramfs
  remove_packages "$LAYER"
  if [[ -e $STATE/files/$LAYER$BLACKLIST ]]; then
    pending nvidia-initramfs
    drop_file "$LAYER" "$BLACKLIST"
    finish
  fi
  TARGET=${NOTED_TARGET:-$TARGET} renew_initramfs
  rm -rf "$ROOT$DOWNLOADS"
  remove_file /var/lib/homelab/nvidia-driver
  step_undone driver
  finish
  printf '{"kept":%s,"changed":"%s"}\n' "$(json_list "${KEPT[@]}")" "$CHANGED"
}

"$1" </dev/null
exit
