#!/usr/bin/env bash
# Packages and downloads: what a layer adds is recorded, and taken away again.
# Needs: packages/installing, packages/removing, files
#
# Arguments: NAME (the system, for messages), SYMPTOMS (known failures, a line each; packages/running.sh), PROXY (may hold a password), LOCK_SECONDS,
# DOWNLOAD_SECONDS, INSTALL_SECONDS (nvidia.timeouts), LOCKED (of the lock file, a line for each package: NAME VERSION SHA256; empty: none).
#
# STATE/packages/<layer>: a line for each package that the layer added, changed or removed: NAME, VERSION NOW, VERSION BEFORE, mark
# before (auto or manual), separated by tabs; `-` for a package that isn't there. It is written before apt is called, so that a run which is
# killed leaves nothing unknown behind, and brought to what really is there at the end of a run.
#
# Gives: step_done LAYER, step_undone LAYER, is_anothers_step LAYER, leave_untouched.

# step_done LAYER / step_undone LAYER - that a step was carried out here is known from here: a system that was reinstalled, or went back to
# a snapshot, tells of none. With the name under which the settings have the system: NAME.
step_done() {
  need_dir "$STATE/steps"
  write_atomically "/var/lib/homelab/steps/$1" 0600 printf '%s\n' "$NAME"
}

step_undone() { remove_file "/var/lib/homelab/steps/$1"; }

# is_anothers_step LAYER - was the step last carried out under another name of the settings? Who gives a system a new name there gets the step
# under the new one first, and its undoing under the old one then: by that time what is there is the new one's. (A version of this program
# before that noted no name.)
is_anothers_step() {
  local by
  [[ -r $STATE/steps/$1 ]] || return 1 # a file that $(<) can't read ends the script, also in a condition
  by=$(<"$STATE/steps/$1")
  [[ -n $by && $by != "$NAME" ]] || return 1
  log "note: $by has it by now: nothing is taken back under the name $NAME"
}

# leave_untouched - the end of a `revert` that has nothing to take back.
leave_untouched() {
  finish || return 1
  printf '{"changed":"no","kept":[]}\n'
}
