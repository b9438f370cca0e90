#!/usr/bin/env bash
# An update of the driver that is on its way: how far it is, what was kept for it, and its end.
# Needs: driver, packages
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
# Gives: enter_phase PHASE, close_update; let_go; kept_version; package_file FOLDER NAME VERSION; serves_cards LOG;
#   in_shell_of_its_own COMMAND, failure_part wanted|found|why|next. Variables: UPDATE, GIVEN_UP.
UPDATE=/var/lib/homelab/update
# Before homelab-nvidia by its name: of several pins for a version, the first counts (apt_preferences(5)).
GIVEN_UP=/etc/apt/preferences.d/homelab-given-up

enter_phase() { write_atomically "$UPDATE/phase" 0600 printf '%s\n' "$1"; }

# close_update - without a phase the rest is litter.
close_update() {
  remove_file "$UPDATE/phase"
  rm -rf "$STATE/update"
}

# let_go - another version may be installed again.
let_go() { drop_file "$LAYER" "$GIVEN_UP"; }

kept_version() {
  local version=''
  { IFS=$'\t' read -r version _ || :; } <"$STATE/update/driver" && printf '%s\n' "$version"
}

# package_file FOLDER NAME VERSION - as apt calls a package's file; nothing where it isn't there.
package_file() {
  local file
  for file in "$1/$2_${3//:/%3a}_"*.deb; do
    [[ ! -e $file ]] || { printf '%s\n' "$file" && return 0; }
  done
}

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
  forget_installed
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
