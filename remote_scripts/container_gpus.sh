#!/usr/bin/env bash
# The device nodes of NVIDIA's cards in a container's configuration, by dev[n] options or raw lxc.* lines.
# Needs: container
#
# Arguments: CTID, METHOD (auto | device | mount-entry), MINORS (numbers of /dev/nvidiaN; none: no card), FUNCTIONS (addresses of the
#   cards' display functions), TIMEOUT (seconds of a shutdown), OTHERWISE (fail | stop), KEEP (yes: the container is removed with the
#   stack, so that revert does nothing), GENERATION (no part in what happens).
# Changes: /etc/pve/lxc/CTID.conf: our own keys and lines alone (lib/container.sh). What others have given the container stays.
# Undone by `revert`: these keys and lines are taken out, and the container, if it runs, is restarted.
# Verbs: apply, revert.
# Answer of apply: {"digest","revision","devices":{path:how}}; digest: of what gives the container its devices.

apply() {
  local separator='' path
  take_lock
  CHANGED=no
  set_up
  if [[ $CHANGED == no ]]; then
    log "container $CTID has what it is to have"
  fi
  finish
  printf '{"digest":"%s","revision":%s,"devices":{' "$(provided | sha256sum | cut -c 1-16)" "$(revision)"
  for path in "${DEVICES[@]}"; do
    [[ -n ${PROVIDED[$path]:-} ]] || continue
    printf '%s%s:"%s"' "$separator" "$(json_string "$path")" "${PROVIDED[$path]%% *}"
    separator=,
  done
  printf '}}\n'
}

revision() {
  local found
  found=$(noted revision)
  printf '%s' "${found:-0}"
}

provided() {
  local path
  for path in "${DEVICES[@]}"; do
    [[ -z ${PROVIDED[$path]:-} ]] || printf '%s %s %s:%s\n' "$path" "${PROVIDED[$path]}" "${MAJOR[$path]}" "${MINOR[$path]}"
  done
}

revert() {
  take_lock
  CHANGED=no
  if [[ $KEEP == yes || ! -e $ROOT$PVE_LXC/$CTID.conf ]]; then
    log "there is nothing to take out of container $CTID"
    rm -rf "$ROOT$(record_dir)"
  else
    take_out
    [[ ! -e $ROOT$(record_dir)/restart ]] || restart
    rm -rf "$ROOT$(record_dir)"
  fi
  finish
  printf '{"changed":"%s"}\n' "$CHANGED"
}

restart() {
  shut_down || die "container $CTID off within $TIMEOUT s, to be started without the cards" "it still runs" \
    "its configuration has no card any more; it runs on with what it was started with" \
    "see what keeps it (\`pct exec $CTID -- ps\`), or switch it off: \`pct stop $CTID\`, then run \`pulumi up\` again; or set shutdown.otherwise: stop"
  in_force
  start_up
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
