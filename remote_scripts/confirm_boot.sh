#!/usr/bin/env bash
# Confirms the running boot, unless this host has taken its boot configuration back, or is about to: disarms the dead man's switch. That
# stays armed where this boot doesn't run what is configured.
# Needs: progress, switch/arm
#
# Arguments: LOCK_TIMEOUT (seconds to wait for another run), UNLESS (a boot's id: nothing is done while that one runs; may be empty), JUDGED_TOLD (yes: what this
#   host has judged itself was told to somebody).
# Answers: boot (the running one's id), confirmed (the same; empty: it is not), rolled_back (which boot was, and why), rolling_back (and has still to
#   restart), judged (for people: this host has judged its boot itself meanwhile).
# Changes: removes /var/lib/homelab/armed, which decides; then /etc/systemd/system/homelab-rollback.* and /var/lib/homelab/rollback, and judged if JUDGED_TOLD.
# Verbs: apply.

apply() {
  JUDGED=''
  if [[ $(boot_id) == "$UNLESS" ]] || is_undone; then
    answer ''
    return
  fi
  JUDGED=$(cat "$STATE/judged" 2>/dev/null) || JUDGED=''
  if shows_nothing; then
    take_lock
    if ! is_undone && shows_nothing; then
      log "this boot runs without what is configured: the dead man's switch stays for the next one that has it"
      await_no_boot
    fi
  elif [[ -e $STATE/armed ]]; then
    # Without the lock: whoever takes `armed` away first has decided, and another run may hold the lock for longer than the switch waits. A
    # roll-back has it, too.
    take_armed || return 0
  fi
  tidy_up
  if is_undone; then
    answer ''
  else
    answer "$(boot_id)"
  fi
}

# take_armed - status 1: it can't be taken, and that is answered. What was armed in this boot is for the next one, by a run that may still hold the lock:
# that is waited for.
take_armed() {
  local taken=$STATE/.armed.homelab-tmp
  if [[ $(switch_note armed boot) == "$(boot_id)" ]]; then take_lock; fi
  if ! mv -T "$STATE/armed" "$taken" 2>/dev/null; then
    [[ ! -e $STATE/armed ]] || die "this boot confirmed: /var/lib/homelab/armed removed" "$(mv -T "$STATE/armed" "$taken" 2>&1)" \
      "while it is there, the dead man's switch undoes this boot in a few minutes and restarts the host" \
      "correct what the message names (a file system that is read-only: \`dmesg\`), then run \`pulumi up\` again; to keep this boot meanwhile: \`systemctl stop homelab-rollback.timer\`"
    answer ''
    return 1
  fi
  if [[ -z ${LOCK:-} && $(switch_note "${taken##*/}" boot) == "$(boot_id)" ]]; then # just now
    mv -nT "$taken" "$STATE/armed" 2>/dev/null || :                                 # unless it has been armed once more
    rm -f "$taken"
    take_armed
    return
  fi
  rm "$taken"
  sync "$STATE" || :
}

# shows_nothing - an armed switch waits for a boot with what is configured, which this isn't: it was started from what was made before.
shows_nothing() { [[ -e $STATE/armed ]] && { is_another_boot || is_pending boot; }; }

# tidy_up - what is left of the switch. If another run holds the lock, the switch's own timer does it: it finds nothing armed. What is armed by now is
# that other run's, for the next boot.
tidy_up() {
  is_switch_there || [[ $JUDGED_TOLD == yes ]] || return 0
  if [[ -z ${LOCK:-} ]] && { ! make_run_dir || ! get_lock "$LOCK_TIMEOUT"; }; then
    log "another run is at work on this host: its timer takes the rest of the dead man's switch away"
    return
  fi
  clear_leftovers
  [[ -e $STATE/armed ]] || is_undone || ! is_switch_there || disarm
  [[ $JUDGED_TOLD != yes ]] || remove_file /var/lib/homelab/judged
  finish
}

is_undone() { [[ -e $STATE/rolling-back || -e $STATE/rolled-back || -e $RUN/restarting ]]; }

answer() { # CONFIRMED
  local rolling=false
  ! is_rolling_back || rolling=true
  printf '{"boot":"%s","confirmed":"%s"' "$(boot_id)" "$1"
  find_rolled_back
  json_entry rolled_back "$ROLLED_BACK"
  printf ',"rolling_back":%s' "$rolling"
  json_entry judged "$JUDGED"
  printf '}\n'
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
