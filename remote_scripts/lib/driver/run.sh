#!/usr/bin/env bash
# NVIDIA's driver from NVIDIA's installer.
# Needs: driver, driver/packages, driver/modules, packages, versions
#
# STATE/nvidia-run: what the installer has installed: version, address, SHA-256, arguments, a line each (of versions before this one the first
# alone).
#
# Gives: install_from_run -> CHANGED; run_file FOLDER VERSION, fetch_installer FILE VERSION URL SHA256, run_installer FILE -> CHANGED;
#   remove_run; unload -> DAEMON_STOPPED, start_daemon. Variables: those of nvidia_driver.sh (RUN_...); DOWNLOADS.
DOWNLOADS=/var/lib/homelab/downloads
DAEMON=nvidia-persistenced.service

install_from_run() {
  local names message file
  file=$(run_file "$DOWNLOADS" "$RUN_VERSION")
  if [[ -z $RUN_SHA256 ]]; then
    mapfile -t message <<<"$RUN_UNPINNED"
    die "${message[@]}"
  fi
  read -ra names <<<"$RUN_PREREQUISITES"
  install_packages "$LAYER" no "${names[@]}"
  fetch_installer "$file" "$RUN_VERSION" "$RUN_URL" "$RUN_SHA256"
  remove_driver_packages
  [[ $(run_version) == "$RUN_VERSION" ]] || remove_run
  run_installer "$file"
}

run_file() { printf '%s/NVIDIA-Linux-x86_64-%s.run' "$1" "$2"; }

# run_installer FILE - with RUN_ARGUMENTS.
run_installer() {
  local arguments out=$LOGS/installer
  read -ra arguments <<<"$RUN_ARGUMENTS"
  [[ $TARGET == lxc ]] || clear_the_way
  note_run
  log "installing NVIDIA's driver $RUN_VERSION from its installer"
  # It unpacks more than a gigabyte, which /tmp and /run, in memory, may not have.
  mkdir -p "$ROOT$DOWNLOADS/unpacked"
  run_streamed "$INSTALL_SECONDS" "$out" env TMPDIR="$ROOT$DOWNLOADS/unpacked" sh "$ROOT$1" "${arguments[@]}" || explain_installer "$out"
  rm -rf "$ROOT$DOWNLOADS"
  CHANGED=yes
}

# fetch_installer FILE VERSION URL SHA256 - with the checksum that was known before: whoever can replace the file can replace what is published beside it.
fetch_installer() {
  local found
  [[ -e $ROOT$1 ]] || download "$3" "$1"
  found=$(sha256sum "$ROOT$1")
  found=${found%% *}
  [[ $4 == "$found" ]] && return 0
  # The next run fetches it anew.
  rm -f "$ROOT$1"
  die "NVIDIA's installer $2, with the checksum $4" "$found at $3" \
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
    at_least 545.23.06 "$RUN_VERSION" || unload || die "no module of NVIDIA's loaded, for the installer of $RUN_VERSION" "$(nvidia_version) is loaded and in use" \
      "installers before 545.23.06 replace no driver that is in use" "reboot it with what uses the card stopped, then run \`pulumi up\` again"
    ! at_least 545.23.06 "$RUN_VERSION" || arguments+=(--allow-installation-with-running-driver)
  fi
  if held_by_others; then
    at_least 550.40.07 "$RUN_VERSION" || die "the card free for NVIDIA's installer" "$HOLDER has it" "it is blacklisted now, and gives the card up at a boot" \
      "reboot it, then run \`pulumi up\` again"
    arguments+=(--no-nouveau-check --skip-module-load)
  fi
}

# unload - no, if something uses the modules. NVIDIA's daemon, which keeps cards initialised, is none: it is stopped for that (DAEMON_STOPPED), and
# goes on where that doesn't help.
unload() {
  local loaded=()
  DAEMON_STOPPED=no
  mapfile -t loaded < <(lsmod | awk '{ there[$1] = 1 } END { n = split("nvidia_uvm nvidia_drm nvidia_modeset nvidia", names); for (i = 1; i <= n; i++) if (names[i] in there) print names[i] }')
  if systemctl is-active -q "$DAEMON" </dev/null 2>/dev/null && run_logged systemctl stop "$DAEMON"; then DAEMON_STOPPED=yes; fi
  run_streamed 60 "$LOGS/unload" rmmod "${loaded[@]}" || [[ -z $(nvidia_version) ]] || {
    start_daemon
    return 1
  }
}

# start_daemon - after `unload`.
start_daemon() { [[ $DAEMON_STOPPED != yes ]] || run_logged systemctl start "$DAEMON" || log "note: $DAEMON doesn't start again: $OUTPUT"; }

# note_run - that what the installer puts there is ours, before it begins. Somebody's own that was there before is named, for `revert`.
note_run() { need_dir "$STATE" && write_atomically /var/lib/homelab/nvidia-run 0600 printf '%s\n' "$RUN_VERSION" "$RUN_URL" "$RUN_SHA256" "$RUN_ARGUMENTS"; }

# remove_run - what the installer has put there, ours or somebody's: its files and those of packages have the same names.
remove_run() {
  [[ -n $(run_version) ]] || { remove_file /var/lib/homelab/nvidia-run && return 0; }
  [[ -e $STATE/nvidia-run ]] || log "note: replacing the driver $(run_version) which was installed by hand with NVIDIA's installer; it doesn't come back"
  run_streamed "$INSTALL_SECONDS" "$LOGS/uninstall" "$ROOT/usr/bin/nvidia-uninstall" --silent ||
    explain "$LOGS/uninstall" "what NVIDIA's installer has installed, removed" "two drivers don't go together"
  remove_file /var/lib/homelab/nvidia-run
  CHANGED=yes
}
