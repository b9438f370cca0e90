#!/usr/bin/env bash
# The device nodes of cards in a container's configuration, by dev[n] options or raw lxc.* lines.
# Needs: container, handover/rest
#
# Arguments: CTID, METHOD (device | mount-entry), MINORS (numbers of /dev/nvidiaN; none: no card of NVIDIA's), FUNCTIONS (addresses of
#   their display functions), CARDS (those of other makers: ADDRESS=KIND,...; a kind is render, card or kfd), TIMEOUT (seconds of a shutdown), OTHERWISE (fail | stop), KEEP (yes: the container is removed with the
#   stack, so that revert does nothing), GUEST (its name in the settings), GENERATION (no part in what happens).
# Changes: /etc/pve/lxc/CTID.conf: our own keys and lines alone (lib/container.sh). What others have given the container stays.
# Undone by `revert`: these keys and lines are taken out, and the container, if it runs, is restarted; where it is on another node by then, by
#   the layer container_record and `revert` there. Not where the container has got
#   another GUEST since: then that one has them.
# Verbs: apply, revert.
# Answer of apply: {"digest","revision","devices":{path:how}}; digest: of what gives the container its devices.

apply() {
  local separator='' path digest
  take_lock
  need_rest
  CHANGED=no
  set_up
  note guest printf '%s\n' "$GUEST"
  if [[ $CHANGED == no ]]; then
    log "container $CTID has what it is to have"
  fi
  finish
  digest=$(provided | sha256sum)
  printf '{"digest":"%s","revision":%s,"devices":{' "${digest:0:16}" "$(revision)"
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
  local holder
  take_lock
  CHANGED=no
  holder=$(noted guest)
  if [[ -n $GUEST && -n $holder && $holder != "$GUEST" ]]; then
    log "note: container $CTID is containers.$holder now, and keeps what it was given"
  elif [[ ! -e $ROOT$PVE_LXC/$CTID.conf && -n $(node_of_container) ]]; then
    log "note: container $CTID is on $(node_of_container) now: what is noted of it stays until it is given back there"
  elif [[ $KEEP == yes || ! -e $ROOT$PVE_LXC/$CTID.conf ]]; then
    log "there is nothing to take out of container $CTID"
    rm -rf "$ROOT${RECORDS:?}/${CTID:?}"
  else
    take_out
    restart
    rm -rf "$ROOT${RECORDS:?}/${CTID:?}"
  fi
  finish
  printf '{"changed":"%s"}\n' "$CHANGED"
}

restart() {
  [[ ! -e $ROOT$RECORDS/$CTID/restart ]] || ! is_up || shut_down_to_start || die "container $CTID off within $TIMEOUT s, to be started without the cards" "it still runs" \
    "its configuration has no card any more; it runs on with what it was started with" \
    "see what keeps it (\`pct exec $CTID -- ps\`), or switch it off: \`pct stop $CTID\`, then run \`pulumi up\` again; or set shutdown.otherwise: stop"
  in_force
  start_interrupted
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
