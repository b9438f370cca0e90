#!/usr/bin/env bash
# What the dead man's switch runs on the host, ROLLBACK_AFTER seconds after each boot's start, until it is disarmed (lib/switch.sh): it
# decides whether the boot is to be undone, then takes our configuration away and restarts the host.
# The command line first, since it is the one switch. Whatever fails or hangs, the rest still happens.
# Needs: boot, ran, switch/judge, switch/step, switch/steps, switch/entries, switch/restart
#
# Arguments: ROLLBACK_AFTER (seconds), ENTRY_SYSTEMD_BOOT.
# Changes: all that cmdline.sh and layers/initramfs.py wrote; leaves /var/lib/homelab/rolled-back or judged, which `up` reports.
# Verbs: none: it decides and rolls back; or a function's name and its arguments, which is one step of that.

LOADER=$(switch_note rolling-back loader)
LOADER=${LOADER:-$(switch_note armed loader)}
LOADER=${LOADER:-grub}
exec {LOCK}</dev/null # steps run while the lock is held for them

# So many boots are restarted, where they still run with our words.
MOST_BOOTS=4

trap - ERR EXIT HUP TERM # a step that fails says so by its status
# Nothing is put back here, and a full disk has no room for copies.
remember() { :; }

# roll_back - what the timer runs. Nothing here may stop it: whatever can fail or hang is a step.
roll_back() {
  set +eu
  local reason='' verdict='' status=1 here until noted=yes failed=no differs=no restart=yes boots layer path FILES
  here=$(boot_id)
  if [[ ! -e $STATE/rolling-back ]]; then
    if [[ ! -e $STATE/armed ]]; then
      step 60 disarm # what a power cut left of it
      return 0
    fi
    # Armed in this boot it is for the next one: somebody is in reach of this.
    [[ $(switch_note armed boot) != "$here" ]] || return 0
    until=$(switch_note armed until)
    if step 60 is_all_given_back; then
      status=0 reason="has nothing of this program in its boot configuration any more, so that there is nothing to give back"
    elif step 60 is_another_boot; then
      # By the second entry, which a person or a roll-back that could note nothing has chosen, or from an older menu: the next boot
      # with what is configured is the one to look at.
      step 60 pass_over "boot $here runs without what is configured: another boot entry was chosen, or the entries are older"
      return 0
    elif [[ $until =~ ^[0-9]+$ ]] && (($(date +%s) < until)); then
      reason="was not confirmed within $ROLLBACK_AFTER s of its start"
    else
      verdict=$(step $((ROLLBACK_AFTER / 10 + 120)) judge)
      status=$?
      [[ -n $verdict ]] || verdict="how this host is reached could not be told"
      reason="was waited for by no \`up\`, and judged by this host itself $ROLLBACK_AFTER s after its start: $verdict"
    fi
  fi
  hold_lock
  if [[ -e $STATE/rolling-back ]]; then
    log "going on with a roll-back"
    # Begun in another boot: this one needs a restart only if it still runs with our words.
    [[ $(switch_note rolling-back boot) == "$here" ]] || here=''
  elif [[ -z $reason || ! -e $STATE/armed || $(switch_note armed boot) == "$here" ]]; then
    return 0 # confirmed, given back or armed anew meanwhile
  elif ((status == 0)); then
    step 60 stay "boot $here $reason"
    return 0
  else
    log "boot $here $reason: giving back the boot configuration from before"
    if ! mv -T "$STATE/armed" "$STATE/rolling-back"; then
      [[ -e $STATE/armed ]] || return 0
      here='' # the next boot won't know of this one: nothing but our words is a reason to restart again and again
    fi
  fi
  { make_run_dir && printf 'boot %s %s' "$(boot_id)" "${reason:-is being undone}" >"$RUN/restarting"; } ||
    log "it could not be noted in $RUN that this boot is being undone"
  step 60 begin "$reason" || noted=no
  # Now: with the last of what was noted goes this program, too.
  if [[ -z $here ]]; then
    step 60 runs_with_our_words || restart=no
    # What boots had no effect on, another one will not change; and a person may be at work on it.
    boots=$(switch_note rolling-back boots)
    [[ ! $boots =~ ^[0-9]+$ ]] || ((boots <= MOST_BOOTS)) || restart=no
  fi
  for layer in vfio iommu; do
    step 60 drop_words "$layer" || failed=yes
  done
  if ! step 600 generate; then
    failed=yes
  elif [[ $failed == no ]]; then
    differs=yes
  fi
  if [[ $failed == yes ]]; then
    # The next boot takes the second entry, and our words go out of the configuration that was generated before. Either is enough.
    if step 150 choose_second_entry && has_second_entry; then differs=yes; fi
    if step 150 take_words_out; then differs=yes; fi
  else
    step 300 drop_second_entries || failed=yes
  fi
  if [[ $noted == yes ]]; then
    for layer in vfio iommu; do
      find_layer_files "$layer"
      for path in "${FILES[@]}"; do
        step 60 drop_file "$layer" "$path" || failed=yes
      done
    done
    ! is_pending initramfs || step 1800 make_initramfs || failed=yes
  else # a full disk: what has no effect without our words can wait for a boot that can note what is left to do
    failed=yes
  fi
  step 300 sync -f "$ROOT/etc" "$ROOT/boot" "$STATE"
  if [[ $failed == no ]]; then
    step 300 conclude
  else
    log "the roll-back is not finished: the switch stays armed, and goes on at the next boot"
  fi
  if [[ $restart == yes && $noted == no && $differs == no ]] && ! step 60 is_next_boot_another; then
    # It would come back the same, and nobody could count how often.
    restart=no
    say_to_all "boot $(boot_id) ${reason:-is to be undone}, and nothing could be written that the next boot would read \
($(places_in_words)). This host is not restarted, since it would come back the same. Choose the entry 'without GPU passthrough' in its \
boot menu; once it can write again, the next boot goes on."
  fi
  if [[ $restart == yes ]]; then
    # Whoever comes back is started again by the next boot, where its program is.
    [[ ! -e $ROOT$RAN-program ]] || step 180 note_running
    restart_host
    return 0
  fi
  rm -f "$RUN/restarting"
  [[ $failed == no || ! -e $STATE/rolling-back ]] || step 60 rest
  return 0
}

# In the process group of the step, so that it ends with that.
exec_within() {
  trap - PIPE
  exec timeout --foreground -k 2 "$1" "${AS_BY_DEFAULT[@]}" "${@:2}"
}

# Nobody looks on, and what is said belongs into the journal: what is in /run is gone with this boot.
watched() {
  local status=0
  (
    holding_lock "$@"
    exit
  ) || status=$?
  [[ ! -s $1 ]] || log "$(of_file "$1")"
  return "$status"
}
open_step_log() { :; }

main() {
  "${@:-roll_back}" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
