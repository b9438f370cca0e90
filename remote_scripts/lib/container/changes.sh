#!/usr/bin/env bash
# A container's configuration brought to what is planned: read, planned and written again until nobody has changed it in between.
# Needs: container/plan, container/drift, container/follow
#
# Gives: set_up, take_out -> CHANGED; replace_conf; wait_for_guests.

# set_up - brings the configuration to what METHOD, MINORS, FUNCTIONS and CARDS say; with AT_BOOT=yes our lines to what `follow_nodes` says. It is written whole, under the digest of what was read:
# whatever somebody else has written meanwhile is read anew. Sets CHANGED.
set_up() {
  local tries=0 most
  OUTPUT=''
  need_container
  unmount_left
  wait_for_guests
  remember_record
  if [[ ${AT_BOOT:-no} == no ]]; then
    find_devices
    look_up
    need_devices
    find_groups
  fi
  ! read_conf || check_before
  while read_conf && need_changeable && plan_lines && changes_something; do
    [[ ${AT_BOOT:-no} == yes ]] || need_open_nodes
    tries=$((tries + 1)) most=5
    # Each try has waited ten seconds for the lock: for a minute at least.
    [[ $OUTPUT != *"got timeout"* && $OUTPUT != *"held by another process"* ]] || most=7
    ((tries <= most)) || [[ $CHANGED == yes ]] || forget_change
    ((tries <= most)) || die "the configuration of container $CTID changed" \
      "${OUTPUT:-it was changed from elsewhere five times meanwhile}" "no other change may be lost" \
      "see who changes it, then run \`pulumi up\` again"
    note_change
    OUTPUT=''
    if write_devs && write_lines; then
      CHANGED=yes # and once more round: what was written is read
    else
      need_quorum
      nothing_to_put_back
      log "the configuration of container $CTID was changed from elsewhere, or is being changed: reading it again"
    fi
  done
  keep_record
  if [[ -e $ROOT$RECORDS/$CTID/restart ]]; then
    find_digest
    note after printf '%s\n' "$DIGEST"
  else
    in_force # it is off: its next start takes what is there
  fi
}

plan_lines() { if [[ ${AT_BOOT:-no} == yes ]]; then follow_nodes; else plan; fi; }

# take_out - our lines go, and nothing else. Sets CHANGED.
take_out() {
  METHOD=mount-entry MINORS='' FUNCTIONS='' CARDS=''
  set_up
  rm -f "$ROOT$RECORDS/$CTID"/{ours,wanted,nodes,revision}
}

# write_devs - dev[n] options through pct, which alone may: it checks them, and gives them to a running container if it can.
write_devs() {
  local value number=0 arguments=() gone=''
  for number in "${!DROP_DEV[@]}"; do
    gone+=${gone:+,}dev$number
    log "dev$number goes: ${DEV[$number]}"
  done
  [[ -z $gone ]] || arguments=(--delete "$gone")
  number=0
  for value in "${ADD_DEV[@]}"; do
    # A number that is to go is free only once it has gone.
    while [[ -n ${DEV[$number]:-} ]] || [[ $'\n'$TEXT == *$'\n'"dev$number:"* ]]; do number=$((number + 1)); done
    arguments+=("--dev$number" "$value")
    log "dev$number: $value"
    number=$((number + 1))
  done
  ((${#arguments[@]} > 0)) || return 0
  find_digest
  if run_logged pct set "$CTID" --digest "$DIGEST" "${arguments[@]}"; then
    ((${#ADD_LXC[@]} + ${#DROP_LXC[@]} == 0)) || { read_conf && plan_lines; } # pct has written the file anew
    return 0
  fi
  # Changed meanwhile, or somebody has the file's lock: that passes. Anything else stays.
  [[ $OUTPUT == *"detected modified configuration"* || $OUTPUT == *"got timeout"* ]] && return 1
  need_quorum
  forget_change
  die "container $CTID given its devices: pct set ${arguments[*]}" "$OUTPUT" "its configuration is unchanged" \
    "correct what pct says, then run \`pulumi up\` again"
}

# write_lines - raw lines, by the file: no API takes them. Under the lock of Proxmox VE's own writers, and the digest.
write_lines() {
  local index text='' status=0 lock lines=()
  ((${#ADD_LXC[@]} + ${#DROP_LXC[@]} > 0)) || return 0
  for index in "${!HEAD[@]}"; do
    [[ -n ${DROP_LXC[$index]:-} ]] || lines+=("${HEAD[index]}")
  done
  insert_lines
  mkdir -p "$ROOT/run/lock/lxc"
  exec {lock}>>"$ROOT/run/lock/lxc/pve-config-$CTID.lock"
  if ! flock -w "${CONF_LOCK_TIMEOUT:-10}" "$lock"; then
    OUTPUT="/run/lock/lxc/pve-config-$CTID.lock is held by another process"
    status=1
  elif ! is_as_read; then
    status=1
  else
    replace_conf "$text" || status=1
  fi
  exec {lock}>&-
  return "$status"
}

# insert_lines - sets `text`: `lines` with ADD_LXC after the last one that isn't empty, where Proxmox VE has raw lines, and TAIL.
insert_lines() {
  local last=$((${#lines[@]} - 1)) index line
  while ((last >= 0)) && [[ -z ${lines[last]//[[:space:]]/} ]]; do last=$((last - 1)); done
  for ((index = 0; index < ${#lines[@]}; index++)); do
    text+=${lines[index]}$'\n'
    ((index != last)) || for line in "${ADD_LXC[@]}"; do text+=$line$'\n'; done
  done
  ((last >= 0)) || for line in "${ADD_LXC[@]}"; do text+=$line$'\n'; done
  text+=$TAIL
  for index in "${ADD_LXC[@]}"; do log "$index"; done
}

# replace_conf TEXT - it becomes the configuration. The name is one that Proxmox VE's own writers use; its file system
# refuses chmod and chown, and gives every file the rights that a configuration has. Where it can't be written, OUTPUT says why.
replace_conf() {
  local temporary=$ROOT$PVE_LXC/$CTID.conf.tmp.$$
  rm -f "$ROOT$PVE_LXC/$CTID.conf.tmp."* # of a run that was killed: the lock is ours
  OUTPUT=$({ (umask 027 && printf '%s' "$1" >"$temporary") && in_place "$temporary" "$PVE_LXC/$CTID.conf"; } 2>&1) && return 0
  rm -f "$temporary"
  return 1
}

# need_quorum - where OUTPUT says that /etc/pve can only be read: nobody has changed anything, and trying again is of no use.
need_quorum() {
  local missing said=${OUTPUT##*$'\n'}
  [[ $OUTPUT == *"no quorum"* || $OUTPUT == *".conf.tmp."*"Permission denied"* || $OUTPUT == *".conf.tmp."*"Read-only file system"* ]] || return 0
  [[ $CHANGED == yes ]] || forget_change
  missing=$(grep -oE '"[^"]+": *\{[^{}]*"online": *0[^{}]*\}' "$ROOT/etc/pve/.members" 2>/dev/null | cut -d'"' -f2 | tr '\n' ' ')
  [[ -z $missing ]] || missing="; these nodes of the cluster don't answer: $missing"
  die "the configuration of container $CTID written" "$said: no quorum$missing" \
    "without a quorum /etc/pve can only be read: nothing can be changed or started; the container runs on as it was" \
    "see \`pvecm status\`; bring the missing nodes back, or wait until they are, then run \`pulumi up\` again"
}

# wait_for_guests - until those that start with the host have been started: one that starts while its configuration is written would
# run with what was before, and nobody would know.
wait_for_guests() {
  local waited=0
  # Whoever has the lock may be a start of theirs.
  [[ ${HELD:-no} == no ]] || return 0
  while [[ $(exec_within "$ASK_SECONDS" systemctl is-active pve-guests.service 2>/dev/null) == activating ]] && ((waited < 300)); do
    if ((waited == 0)); then
      told_from_now
      log "waiting for the guests that start with the host"
    fi
    sleep 1
    tell_now_and_then "waiting for the guests that start with the host"
    waited=$((waited + 1))
  done
}
