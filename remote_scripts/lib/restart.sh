#!/usr/bin/env bash
# A restart of the system, once the script that asks for it has answered.
# Needs: lock
#
# Gives: restart_soon -> OUTPUT.

# restart_soon - in a unit of its own, which waits until this script has ended, not a minute: on a busy system what comes between the order and the
# answer can take longer than any fixed time, and whoever waits for the answer would see a connection that broke. (Timers are a minute
# inexact by default.)
restart_soon() {
  # shellcheck disable=SC2016 # it is the unit's shell that expands this
  run_logged systemd-run --collect --on-active=1 --timer-property=AccuracySec=100ms \
    bash -c 'timeout 60 tail -s 0.1 --pid="$1" -f /dev/null; systemctl reboot' restart "$$"
}
