#!/usr/bin/env bash
# Restarts the system that it runs on, a moment after it has answered.
# Needs: files
#
# Arguments: none. Changes: nothing that lasts.
# Verbs: apply.

apply() {
  take_lock # a step whose client was killed goes on to its end
  # In a unit of its own: this script still has to answer. (Timers are a minute inexact by default.)
  run_logged systemd-run --collect --on-active=1 --timer-property=AccuracySec=100ms systemctl reboot || die "a reboot of this system" "$OUTPUT" \
    "its running kernel can't use the installed driver" "reboot it by hand, then run \`pulumi up\` again"
  printf '{"reboot":"yes"}\n'
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
