#!/usr/bin/env bash
# Restarts the system that it runs on, a moment after it has answered.
# Needs: files, restart
#
# Arguments: none. Changes: nothing that lasts.
# Verbs: apply.

apply() {
  take_lock # a step whose client was killed goes on to its end
  restart_soon || die "a reboot of this system" "$OUTPUT" \
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
