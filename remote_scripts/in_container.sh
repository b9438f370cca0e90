#!/usr/bin/env bash
# Runs a script inside a container, by `pct exec` with the script on its standard input: no SSH is needed in there.
# Needs: files, guests, run_dir, progress
#
# Arguments: CTID, SCRIPT (a composed script, which gets the same verb).
# Changes, answer, and how that is undone: the script's. For a container that is gone there is nothing to undo.
# Verbs: apply, revert.

# What the script's own status 1 is called on its way: pct exec and lxc-attach have that one, too.
MESSAGE_IS_OUT=97
# How long its last words are waited for, in seconds, when it has ended and the pipe hasn't.
LAST_WORDS_SECONDS=${LAST_WORDS_SECONDS:-2}

apply() { inside apply; }

revert() {
  local node
  node=$(exec_within "$ASK_SECONDS" find "$ROOT/etc/pve/nodes/" -mindepth 3 -maxdepth 3 -path "*/lxc/$CTID.conf" -printf '%P\n' 2>/dev/null | sed 's,/.*,,' | head -n 1) || node=''
  [[ -z $node || -e $ROOT/etc/pve/lxc/$CTID.conf ]] || die "what was installed in container $CTID taken out" "it is on the node $node now" \
    "it is reached through the node that it is on; nothing was changed in it" \
    "run \`pulumi up\`, which finds it there, then the same again; or migrate it back while it is off: \`pct migrate $CTID $(hostname)\` on $node"
  if ! within "$ASK_SECONDS" pct config "$CTID" >/dev/null 2>&1; then
    log "container $CTID is gone: there is nothing to take out of it"
    printf '{"changed":"no"}\n'
    return 0
  fi
  inside revert
}

inside() {
  local status=0
  find_power pct "$CTID"
  [[ $POWER_NOW =~ ^(on|off)$ ]] || die "container $CTID" "$POWER_SAID" "packages go into it" \
    "create the container, or take it out of the settings; where it is there, see \`pct status $CTID\` on the host, then run \`pulumi up\` again"
  [[ $POWER_NOW == on ]] || die "container $CTID running" "pct status: $POWER_SAID" "what is in it is changed from inside" \
    "start it: \`pct start $CTID\`, then run \`pulumi up\` again"
  run_inside "$1" || status=$?
  [[ $status != 0 ]] || return 0
  # Its message is out. Anything else comes from before the script: no bash, no lxc-attach (which says 1); or it was killed.
  [[ $status != "$MESSAGE_IS_OUT" ]] || exit 99
  die "to run a script in container $CTID" "exit status $status of pct exec; see the log above" "packages go into it" \
    "try \`pct exec $CTID -- bash -c true\`; only Debian and Ubuntu containers can be given packages"
}

# run_inside VERB - with its status, MESSAGE_IS_OUT for the script's own 1. Its answer goes where ours goes; a line for people is passed on as it
# comes, into this host's log, too. The script says where it is by itself: only of a longer silence a person is told. Of what is opened here
# nothing is open in there: what goes on in there would hold it.
run_inside() {
  local said answers status='' over until patience=1000000000
  local PROGRESS_SECONDS=$((2 * PROGRESS_SECONDS)) TIME turn place=/dev/null
  { make_run_dir && place=$RUN/inside && open_step_log "container $CTID: $1"; } || :
  # The next run waits for what is at work in there (layers/run_guard.py), also where this script was killed.
  exec {turn}>>"$place"
  flock -s -w "$ASK_SECONDS" "$turn" || :
  [[ -z $OF_RUN ]] || { printf '%s\n' "$OF_RUN" >&"$turn"; } 2>/dev/null || :
  time_for 864000 # without a limit of its own, it has none in there
  exec {answers}>&1 {said}< <(
    # shellcheck disable=SC2016 # for the shell in there
    pct exec "$CTID" -- bash -c 'timeout -s KILL "$3" bash -s -- "$1" || { s=$?; ((s != 1)) || s=$2; exit "$s"; }' bash "$1" "$MESSAGE_IS_OUT" "$TIME" \
      2>&1 >&"$answers" {answers}>&- {turn}>&- <<<"TIME_LIMIT=$TIME"$'\n'"$SCRIPT" && status=0 || status=$?
    printf '\n\4%s\n' "$status" 2>/dev/null || :
  )
  exec {answers}>&-
  told_from_now
  while over=0 && { await_line "$said" "$patience" tell_of "container $CTID" || over=$?; }; do
    if [[ -z $status && $HEARD =~ ^$'\4'([0-9]{1,3})$ ]]; then
      # What its last words go through (common.sh) may have them still; but a process that it has left in there may have the pipe, too.
      HEARD='' status=${BASH_REMATCH[1]} patience=$LAST_WORDS_SECONDS until=$((SECONDS + 5 * LAST_WORDS_SECONDS))
    fi
    [[ -z $HEARD ]] || pass_on "$HEARD"
    ((over == 0)) && [[ -z $status || $SECONDS -lt $until ]] || break
  done
  exec {said}<&-
  return "${status:-137}"
}

# pass_on TEXT - a line of the script's, also into this host's log, where lines of several containers may stand together.
pass_on() {
  TOLD=$SECONDS
  log "$1"
  note_line "container $CTID: $1"
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
