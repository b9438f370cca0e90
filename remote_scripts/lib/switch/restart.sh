#!/usr/bin/env bash
# Restarts this host, whatever hangs.
# Needs: common, switch/step
#
# Gives: restart_host; say_to_all SENTENCE.

# say_to_all SENTENCE - to the journal, and by the kernel's log to the host's screen: nobody may get any other word of it.
say_to_all() {
  log "$1"
  # shellcheck disable=SC2016 # of that bash
  timeout -s KILL 10 bash -c 'printf "<2>homelab: %s\n" "$1" >"$2"' - "$1" "$ROOT/dev/kmsg" 2>/dev/null || :
}

# restart_host - in an orderly way; by force when that fails, or has not ended it after a while. The last of these is reboot(2) from systemctl
# itself: it flushes every disk first, and asks every driver to stop, so that a disk or a card that is gone can hang it. The kernel's
# emergency restart asks nobody; and bash alone writes for it, since no program may start any more.
restart_host() {
  local force
  for force in '' --force '--force --force'; do
    # shellcheck disable=SC2086 # several options
    if timeout -s KILL 60 systemctl reboot $force; then
      sleep "${REBOOT_SECONDS:-600}"
    else
      log "systemctl reboot $force failed"
      sleep "${RETRY_SECONDS:-5}"
    fi
  done
  step 60 sync
  say_to_all "no \`systemctl reboot\` has ended this boot: restarting by the kernel's emergency restart"
  { printf b >"$ROOT/proc/sysrq-trigger"; } 2>/dev/null || :
  sleep "${RETRY_SECONDS:-5}"
  say_to_all "this host could not be restarted: switch it off and on by hand"
}
