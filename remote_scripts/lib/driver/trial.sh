#!/usr/bin/env bash
# An update of the driver is tried: what is there is kept before anything changes, and put back where the new one can't be installed, built,
# loaded or used. The way back needs no network.
# Needs: driver, driver/keep, driver/restore, driver/update
#
# STATE/update (driver/update.sh), of which `phase` says how far it is:
#   keeping  nothing is changed yet: the next run begins anew.
#   trying   the next run goes on forwards, or back if what was there is wanted by then.
#   back     the next run first goes on with that, then tries anew.
#   tried    installed, and not loaded before a boot: kept until the new one was seen at work. Of a host, until its containers have its libraries,
#            too, and of such a container (`awaited`) until all of them have.
#
# Gives: resume_update; begin_update; try_update -> VERSION, source, reboot, why, CHANGED. Takes, of nvidia_driver.sh, bring_in.

# resume_update - what an earlier run has left of an update.
resume_update() {
  local phase
  phase=$(update_phase)
  case $phase in
    '' | keeping)
      close_update
      return 0
      ;;
    back) ;;
    *) is_kept_wanted || return 0 ;;
  esac
  log "an update of the driver was left half-way: putting $(kept_version) back"
  enter_phase back
  if in_shell_of_its_own restore_driver; then
    close_update
  else
    # It may be that the new one works by now: going on is better than being held here for ever.
    log "note: the driver from before could not be put back: $(failure_part found)"
    enter_phase trying
  fi
}

# is_kept_wanted - is what was kept what is wanted now?
is_kept_wanted() {
  local version flavour kept_source='' name
  for name in $LIBRARIES; do
    ! grep -qsxF "$name" "$STATE/update/lacking" || return 1
  done
  IFS=$'\t' read -r version flavour _ <"$STATE/update/driver"
  [[ ! -e $STATE/update/note ]] || kept_source=$(cut -f 2 "$STATE/update/note")
  fits "$version" && [[ $TARGET == lxc || $flavour == "$FLAVOUR" ]] && [[ $kept_source:$SOURCE != packages:run && $kept_source:$SOURCE != run:packages ]]
}

# begin_update - keeps what is there, or ends the run with nothing changed.
begin_update() {
  in_shell_of_its_own keep_driver || {
    close_update
    die "$(failure_part wanted)" "$(failure_part found)" "$(failure_part why); nothing was changed" "$(failure_part next)"
  }
}

# try_update - with what was kept: the new driver is brought in, or the old one is put back and the run ends with the reason.
try_update() {
  local said old
  old=$(kept_version)
  [[ $(update_phase) == tried ]] || enter_phase trying
  if in_shell_of_its_own attempt; then
    mapfile -t said <"$LOGS/answered"
    VERSION=${said[0]} source=${said[1]} reboot=${said[2]} why=${said[3]} CHANGED=${said[4]}
    if [[ ${AWAITED:-} == yes ]]; then : >"$STATE/update/awaited"; fi
    if [[ ${said[5]} == yes && ${AWAITED:-} != yes ]]; then close_update; else enter_phase tried; fi
    return 0
  fi
  give_up "$old"
}

attempt() {
  bring_in
  prove
  printf '%s\n' "$VERSION" "$source" "$reboot" "$why" "$CHANGED" "$PROVEN"
}

# prove - the new one at work, where it is loaded and the old one was. PROVEN: nothing has to be seen after a boot.
prove() {
  PROVEN=no
  [[ $(nvidia_version) == "$VERSION" && ${reboot:-} != yes ]] || return 0
  # In a container the old ones don't answer any more: its host has the new driver.
  if [[ -e $STATE/update/worked || ${AWAITED:-} == yes ]]; then
    serves_cards "$LOGS/prove" || explain "$LOGS/prove" "NVIDIA's driver $VERSION, answering nvidia-smi" \
      "the one before it, $(kept_version), did, and where this is a container, its host's does"
  fi
  PROVEN=yes
}

# give_up OLD - ends the run with why the new one could not be had, and what there is instead.
give_up() {
  local wanted found why next lost
  wanted=$(failure_part wanted) found=$(failure_part found) why=$(failure_part why) next=$(failure_part next)
  log "note: the update of the driver from $1 failed: $wanted"
  if [[ -s $STATE/update/lost ]]; then
    lost=$(paste -s -d ' ' "$STATE/update/lost")
    close_update
    die "$wanted" "$found" "$why" "$next (The driver $1 can't be put back: no repository and no cache had $lost.)"
  fi
  enter_phase back
  if in_shell_of_its_own restore_driver; then
    close_update
    die "$wanted" "$found" "$why; the update is given up" "the driver $1 is back: $(<"$LOGS/answered"). For another try: $next"
  fi
  die "$wanted" "$found" "$why; and the driver $1 could not be put back: $(failure_part wanted); found: $(failure_part found)" \
    "run \`pulumi up\` again when the cause is gone: it first goes on with putting $1 back. $(failure_part next). For the update: $next"
}
