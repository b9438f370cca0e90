#!/usr/bin/env bash
# Runs a script inside a container, by `pct exec` with the script on its standard input: no SSH is needed in there.
# Needs: files
#
# Arguments: CTID, SCRIPT (a composed script, which gets the same verb).
# Changes, answer, and how that is undone: the script's. For a container that is gone there is nothing to undo.
# Verbs: apply, revert, read_system, verify.

apply() { inside apply; }

read_system() { inside read_system; }

verify() { inside verify; }

revert() {
  if ! within "$ASK_SECONDS" pct config "$CTID" >/dev/null 2>&1; then
    log "container $CTID is gone: there is nothing to take out of it"
    printf '{"changed":"no"}\n'
    return 0
  fi
  inside revert
}

inside() {
  local status=0 state
  state=$(within "$ASK_SECONDS" pct status "$CTID" 2>&1) || die "container $CTID" "$state" "NVIDIA's libraries go into it" \
    "create the container, or take it out of the settings"
  [[ $state == *running* ]] || die "container $CTID running" "pct status: $state" "what is in it is changed from inside" \
    "start it: \`pct start $CTID\`, then run \`pulumi up\` again"
  pct exec "$CTID" -- bash -s -- "$1" <<<"$SCRIPT" || status=$?
  [[ $status != 0 ]] || return 0
  # 1: its message is out. Anything else comes from before the script: no bash, no lxc-attach.
  [[ $status != 1 ]] || exit 99
  die "to run a script in container $CTID" "exit status $status of pct exec; see the log above" "NVIDIA's libraries go into it" \
    "try \`pct exec $CTID -- bash -c true\`; only Debian and Ubuntu containers can have NVIDIA's stack"
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
