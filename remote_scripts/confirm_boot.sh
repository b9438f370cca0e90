#!/usr/bin/env bash
# Confirms the running boot, unless this host has taken its boot configuration back, or is about to: disarms the dead man's switch. That
# stays armed where this boot doesn't run what is configured.
# Needs: switch/arm
#
# Arguments: LOCK_TIMEOUT (seconds to wait for another run), UNLESS (a boot's id: nothing is done while that one runs; may be empty).
# Answers: boot (the running one's id), confirmed (the same; empty: it is not), rolled_back (which boot was, and why), rolling_back (and has still to
#   restart), judged (for people: this host has judged its boot itself meanwhile).
# Changes: removes /etc/systemd/system/homelab-rollback.*, /var/lib/homelab/rollback, armed and judged.
# Verbs: apply.

apply() {
  JUDGED=''
  if [[ $(boot_id) == "$UNLESS" ]]; then
    answer ''
    return
  fi
  # Before the lock as well: a roll-back holds it until the host restarts.
  is_undone || take_lock
  if is_undone; then
    answer ''
    return
  fi
  JUDGED=$(cat "$STATE/judged" 2>/dev/null) || JUDGED=''
  if [[ -e $STATE/armed ]] && is_another_boot; then
    log "this boot runs without what is configured: the dead man's switch stays for the next one that has it"
    await_no_boot
    remove_file /var/lib/homelab/judged
    finish
    answer "$(boot_id)"
    return
  fi
  # Whoever takes `armed` away first has decided: a roll-back that couldn't wait for the lock may be at it, too.
  if [[ -e $STATE/armed ]] && ! rm "$STATE/armed" 2>/dev/null; then
    [[ ! -e $STATE/armed ]] || die "this boot confirmed: /var/lib/homelab/armed removed" "$(rm "$STATE/armed" 2>&1)" \
      "while it is there, the dead man's switch undoes this boot in a few minutes and restarts the host" \
      "correct what the message says (a file system that is read-only: \`dmesg\`), then run \`pulumi up\` again; to keep this boot meanwhile: \`systemctl stop homelab-rollback.timer\`"
    answer ''
    return
  fi
  if is_switch_there; then disarm; fi
  remove_file /var/lib/homelab/judged
  finish
  answer "$(boot_id)"
}

is_undone() { [[ -e $STATE/rolling-back || -e $STATE/rolled-back || -e $RUN/restarting ]]; }

answer() { # CONFIRMED
  local rolling=false
  ! is_rolling_back || rolling=true
  printf '{"boot":"%s","confirmed":"%s","rolled_back":%s,"rolling_back":%s,"judged":%s}\n' "$(boot_id)" "$1" "$(json_string "$(rolled_back)")" "$rolling" \
    "$(json_string "$JUDGED")"
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
