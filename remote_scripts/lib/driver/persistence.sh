#!/usr/bin/env bash
# Cards stay initialised while nobody uses them, by a service of ours.
# Needs: boot_service, driver, files, lock
#
# Gives: persist, start_persistence, drop_persistence. Variables: PERSISTENCE (the unit's text; empty: none), VERSION, LAYER.
PERSISTENCE_SERVICE=homelab-nvidia-persistence.service
PERSISTENCE_LINK=/etc/systemd/system/multi-user.target.wants/$PERSISTENCE_SERVICE

# persist - cards stay initialised while nobody uses them: programs and containers come and go, and each first one would wait for seconds. NVIDIA's own
# daemon doesn't do that as Ubuntu packages it (--no-persistence-mode). In a container it is the host's business.
persist() {
  local changed=$CHANGED
  [[ -n $PERSISTENCE ]] || return 0
  CHANGED=no
  put_file "$LAYER" "/etc/systemd/system/$PERSISTENCE_SERVICE" 0644 "$PERSISTENCE"
  if [[ $CHANGED == yes || ! -L $ROOT$PERSISTENCE_LINK ]]; then
    run_logged systemctl daemon-reload || :
    run_logged systemctl enable --quiet "$PERSISTENCE_SERVICE" || die "$PERSISTENCE_SERVICE enabled" "$OUTPUT" "each program would initialise the cards again" \
      "correct what systemctl says, then run \`pulumi up\` again"
    changed=yes
  fi
  CHANGED=$changed
}

# start_persistence - where the module that is loaded is of the version that is installed.
start_persistence() {
  [[ -n $PERSISTENCE && $(nvidia_version) == "$VERSION" ]] || return 0
  run_logged systemctl start "$PERSISTENCE_SERVICE" || log "$PERSISTENCE_SERVICE doesn't start now: $OUTPUT"
}

drop_persistence() { drop_boot_service "$LAYER" '' "$PERSISTENCE_SERVICE" "$PERSISTENCE_LINK"; }
