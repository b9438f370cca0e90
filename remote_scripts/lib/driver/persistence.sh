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
  [[ $CHANGED == no && -L $ROOT$PERSISTENCE_LINK ]] || changed=yes
  enable_boot_service "$PERSISTENCE_SERVICE" "$PERSISTENCE_LINK" "each program would initialise the cards again"
  CHANGED=$changed
}

# start_persistence - where the module that is loaded is of the version that is installed.
start_persistence() {
  [[ -n $PERSISTENCE && $(nvidia_version) == "$VERSION" ]] || return 0
  run_logged systemctl start "$PERSISTENCE_SERVICE" || log "note: $PERSISTENCE_SERVICE doesn't start now: $OUTPUT"
}

drop_persistence() { drop_boot_service "$LAYER" '' "$PERSISTENCE_SERVICE" "$PERSISTENCE_LINK"; }
