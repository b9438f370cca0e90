#!/usr/bin/env bash
# NVIDIA's driver of one branch or version: from packages or NVIDIA's installer; modules and libraries, in a container the libraries alone.
# Needs: packages, driver/run, driver/packages, driver/modules, driver/source, driver/persistence, driver/update, driver/keep, driver/trial, handover/rest
#
# Arguments: TARGET (vm, host or lxc), DRIVER (branch or version), FLAVOUR (open or proprietary; empty for lxc), SOURCE (packages, run or
#   either: packages if the repositories have them), PREREQUISITES, PACKAGES (separated by spaces, NAME=VERSION), RECOMMENDS (yes or no), LIBRARIES
#   (sonames that a driver which is there must have, too), UNWANTED (packages that go again where we added them),
#   RUN_VERSION, RUN_URL, RUN_SHA256, RUN_UNPINNED (the message where that is not known, a line for each part), RUN_PREREQUISITES,
#   RUN_ARGUMENTS (of the installer, where it may be used), PERSISTENCE (a unit; for a host and a VM), AWAITED (yes: what was kept stays until driver_update.sh is told how it
#   went elsewhere), those of packages.sh, GENERATION (no part in
#   what happens).
# Changes: packages, or what the installer puts there; DKMS's modules; a blacklist for nouveau where the packages bring none; but in a
#   container a service that keeps the cards initialised. The module is loaded where nothing is in its way.
# What replaces a driver is tried (lib/driver/trial.sh): what was there is kept, and put back where the new one can't be had. Libraries that
# are only added keep its version.
# Undone by `revert`: exactly these, and what was replaced comes back. A driver that was there and is what is wanted is left as it is.
# Verbs: apply, revert.
# Answer: {"version","source":"packages|run|found","packages":[what was added],"reboot":"yes|no|no-module","why","changed"}; of revert
#   {"kept":[packages],"changed"}. no-module: a container has none of its own.

LAYER=nvidia-driver
DOING="NVIDIA driver ${DRIVER:-}"

apply() {
  local source reboot why wanted=no
  take_lock
  need_rest
  MAY_REMOVE=$FAMILY
  resume_update
  read_driver_note
  if [[ $(update_phase) != trying ]] && is_wanted && has_libraries; then
    wanted=yes
  else
    stay_at_version
    if [[ -z $(update_phase) ]] && is_worth_keeping; then begin_update; fi
  fi
  if [[ -n $(update_phase) ]]; then try_update; else bring_in; fi
  remove_file /var/lib/homelab/given-up
  step_done driver
  finish
  printf '{"version":%s,"source":"%s","packages":%s,"reboot":"%s","why":%s,"changed":"%s"}\n' "$(json_string "$VERSION")" "$source" \
    "$(packages_json "$LAYER")" "$reboot" "$(json_string "$why")" "$CHANGED"
}

# bring_in - what is wanted, from whatever is there; sets VERSION, `source`, `reboot` and `why`. Takes `wanted`: is it there already?
bring_in() {
  let_go
  if [[ $wanted == yes ]]; then
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
      "in a distribution's own archive, the packages of a branch that has ended lead to those of the next one" \
      "set nvidia.driver to a branch that is maintained, or nvidia.source: run"
  fi
  drop_unwanted
  reboot=no-module why="a container has no kernel of its own"
  if [[ $TARGET == lxc ]]; then
    require_host_version
    note_driver
    return 0
  fi
  build_modules
  renew_initramfs
  note_driver
  persist
  load
  start_persistence
}

note_driver() {
  need_dir "$STATE"
  write_atomically /var/lib/homelab/nvidia-driver 0600 printf '%s\t%s\t%s\t%s\n' "$VERSION" "$source" "$TARGET" "$FLAVOUR"
}

require_host_version() {
  local loaded
  loaded=$(nvidia_version)
  [[ -z $loaded || $loaded == "$VERSION" ]] || die "the libraries of the host's driver, $loaded" "$VERSION is installed" \
    "they must be of one version, to the last digit" "run \`pulumi up --refresh\`: the host's version is read then"
}

revert() {
  take_lock
  ! is_anothers_step driver || { leave_untouched && return; }
  read_driver_note
  drop_persistence
  [[ ! -e $STATE/nvidia-run ]] || remove_run
  MAY_REMOVE=
  [[ $NOTED_TARGET != host ]] || pending nvidia-initramfs
  remove_packages "$LAYER"
  let_go
  if [[ -e $STATE/files/$LAYER$BLACKLIST ]]; then
    pending nvidia-initramfs
    drop_file "$LAYER" "$BLACKLIST"
    finish
  fi
  TARGET=${NOTED_TARGET:-$TARGET} renew_initramfs
  rm -rf "$ROOT$DOWNLOADS"
  remove_file /var/lib/homelab/nvidia-driver
  close_update
  remove_file /var/lib/homelab/given-up
  step_undone driver
  finish
  printf '{"kept":%s,"changed":"%s"}\n' "$(json_list "${KEPT[@]}")" "$CHANGED"
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
