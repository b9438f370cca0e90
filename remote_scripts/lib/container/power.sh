#!/usr/bin/env bash
# A container switched off and on.
# Needs: container/changes, guest_tasks, guests
#
# Gives: shut_down, shut_down_to_start, start_up, is_owed, start_interrupted; put_back. Variables: CTID, TIMEOUT, OTHERWISE.
#
# Where the HA manager has the container, pct asks it and ends at once: the container follows 10 to 20 seconds later, or after the two minutes that a
# lock of a node that has nothing else to do takes. From then on it has the time that pct was given, and HA ends it by force after that, whatever
# OTHERWISE says (PVE::HA::Resources::PVECT).
HA_SECONDS=180

# shut_down - within TIMEOUT seconds, then OTHERWISE (fail | stop). Returns 1 if it still runs.
shut_down() {
  log "shutting container $CTID down"
  DOING="container $CTID" RUN_SECONDS=$((TIMEOUT + 120)) run_logged pct shutdown "$CTID" --timeout "$TIMEOUT" || : # what counts is whether it is off
  await_ha off "$((TIMEOUT + HA_SECONDS))"
  is_up || return 0
  [[ $OTHERWISE == stop ]] || return 1
  log "note: container $CTID didn't go down within $TIMEOUT s: it is stopped"
  [[ ! -e $ROOT$RECORDS/$CTID/ran ]] || note_ran no
  DOING="container $CTID" run_logged pct stop "$CTID" || :
  await_ha off "$HA_SECONDS"
  ! is_up
}

# shut_down_to_start - the same of one that is started again next. It is noted: where that fails, or the run is cut short, the next one starts it.
SHUT_BY_THIS=no
shut_down_to_start() {
  note_ran no
  if shut_down; then
    SHUT_BY_THIS=yes
    note_ran yes || log "note: that container $CTID is off to be started again is not noted: the disk may be full"
    return 0
  fi
  remove_file "$RECORDS/$CTID/ran"
  return 1
}

# is_owed - was it shut down to be started again, and isn't yet? What no longer counts is forgotten, by the rule for VMs (guest_tasks.sh): whoever has switched
# it off since wants it off.
is_owed() {
  [[ -e $ROOT$RECORDS/$CTID/ran ]] || return 1
  if is_up; then
    remove_file "$RECORDS/$CTID/ran"
    return 1
  fi
  [[ $SHUT_BY_THIS == no ]] || return 0
  find_why_not_owed
  [[ -n $WHY ]] || return 0
  log "note: container $CTID ran when an earlier run shut it down; $WHY: whether it runs is left to you, and power in its settings"
  remove_file "$RECORDS/$CTID/ran"
  return 1
}

# start_interrupted - starts one that was shut down to be started again, and isn't.
start_interrupted() { ! is_owed || start_up; }

# await_ha on|off SECONDS - until the HA manager has switched it, if it is the manager's to do so.
await_ha() {
  local until=$((SECONDS + $2))
  is_under_ha || return 0
  told_from_now
  while find_power pct "$CTID" 0 && [[ $POWER_NOW != "$1" ]] && ((SECONDS < until)); do
    tell_now_and_then "waiting for HA to switch container $CTID $1"
    sleep 1
  done
}

start_up() {
  log "starting container $CTID"
  if DOING="container $CTID" run_logged pct start "$CTID"; then
    await_ha on "$HA_SECONDS"
    remove_file "$RECORDS/$CTID/ran"
    return 0
  fi
  die "container $CTID started" "$OUTPUT" "it is off now" "see \`pct start $CTID --debug\`, correct the cause, then run \`pulumi up\` again"
}

# put_back - the container won't go off, so that it runs on as it was: its configuration says what it runs with, too.
put_back() {
  local before lock status=0
  before=$(noted before && printf x)
  before=${before%x}
  [[ -n $before && -e $ROOT$RECORDS/$CTID/after && $(sha1sum <"$ROOT$PVE_LXC/$CTID.conf") == "$(noted after) "* ]] || return 1
  mkdir -p "$ROOT/run/lock/lxc"
  exec {lock}>>"$ROOT/run/lock/lxc/pve-config-$CTID.lock"
  flock -w "${CONF_LOCK_TIMEOUT:-10}" "$lock" && replace_conf "$before" || status=1
  exec {lock}>&-
  # Where it couldn't be put back, what was noted stays: the next run brings the container to what is written.
  ((status != 0)) || forget_since_before
  return "$status"
}
