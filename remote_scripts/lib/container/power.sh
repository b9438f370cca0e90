#!/usr/bin/env bash
# A container switched off and on.
# Needs: container/changes
#
# Gives: shut_down, start_up; put_back. Variables: CTID, TIMEOUT, OTHERWISE.

# shut_down - within TIMEOUT seconds, then OTHERWISE (fail | stop). Returns 1 if it still runs.
shut_down() {
  log "shutting container $CTID down"
  DOING="container $CTID" RUN_SECONDS=$((TIMEOUT + 120)) run_logged pct shutdown "$CTID" --timeout "$TIMEOUT" || : # what counts is whether it is off
  is_up || return 0
  [[ $OTHERWISE == stop ]] || return 1
  log "it didn't within $TIMEOUT s: stopping it"
  DOING="container $CTID" run_logged pct stop "$CTID" || :
  ! is_up
}

start_up() {
  log "starting container $CTID"
  DOING="container $CTID" run_logged pct start "$CTID" && return 0
  die "container $CTID started" "$OUTPUT" "it is off now" "see \`pct start $CTID --debug\`, correct the cause, then run \`pulumi up\` again"
}

# put_back - the container won't go off, so that it runs on as it was: its configuration says what it runs with, too.
put_back() {
  local before lock status=0
  before=$(noted before && printf x)
  before=${before%x}
  [[ -n $before && -e $ROOT$(record_dir)/after && $(sha1sum <"$ROOT$PVE_LXC/$CTID.conf") == "$(noted after) "* ]] || return 1
  mkdir -p "$ROOT/run/lock/lxc"
  exec {lock}>>"$ROOT/run/lock/lxc/pve-config-$CTID.lock"
  flock -w "${CONF_LOCK_TIMEOUT:-10}" "$lock" && replace_conf < <(printf '%s' "$before") || status=1
  exec {lock}>&-
  # Where it couldn't be put back, what was noted stays: the next run brings the container to what is written.
  ((status != 0)) || forget_since_before
  return "$status"
}
