#!/usr/bin/env bash
# What is set for the time of a node's restart, and put back when its turn ends (lib/cluster/over.sh). It is noted before it is set. A timer of the
# node's own ends the turn where nobody else does: in this boot, or in the next one.
# Needs: files, lock
#
# Gives: find_away_note KEY -> AWAY_NOTED; note_away KEY VALUE; arm_turn_end, is_turn_end_armed, disarm_turn_end; in_a_line TEXT.
# Variables: EXPIRING (yes: the timer runs this script); for `arm_turn_end`: TURN_END (cluster_turn.sh, as the timer runs it), AWAY_SECONDS (after so long it does).
#
# STATE/away: KEY VALUE lines. It is there only while STATE/turn is.
TURN_END_PROGRAM=/var/lib/homelab/turn-end
TURN_END_UNITS=/etc/systemd/system
TURN_END_LINK=$TURN_END_UNITS/timers.target.wants/homelab-turn.timer

find_away_note() { # KEY
  local key value
  AWAY_NOTED=''
  [[ -r $STATE/away ]] || return 0
  while read -r key value; do
    [[ $key != "$1" ]] || { AWAY_NOTED=$value && return; }
  done <"$STATE/away"
}

# note_away KEY VALUE - empty: there is nothing of the kind any more.
note_away() {
  local text=''
  [[ ! -r $STATE/away ]] || text=$(sed "/^$1 /d" "$STATE/away") || return 1
  [[ -z $2 ]] || text="${text:+$text$'\n'}$1 $2"
  if [[ -n $text ]]; then
    write_atomically /var/lib/homelab/away 0600 printf '%s\n' "$text"
  else
    remove_file /var/lib/homelab/away
  fi
}

# arm_turn_end - enabled as `systemctl enable` does it, and started: this run may be killed before the restart.
arm_turn_end() {
  local TEMPORARY
  make_dir "${TURN_END_LINK%/*}" &&
    write_atomically "$TURN_END_PROGRAM" 0700 printf '%s\n' "$TURN_END" &&
    write_atomically "$TURN_END_UNITS/homelab-turn.service" 0644 printf '%s\n' "$(turn_end_service)" &&
    write_atomically "$TURN_END_UNITS/homelab-turn.timer" 0644 printf '%s\n' "$(turn_end_timer)" || return 1
  temporary_for "$TURN_END_LINK"
  ln -sfT "$TURN_END_UNITS/homelab-turn.timer" "$TEMPORARY" && in_place "$TEMPORARY" "$TURN_END_LINK" || return 1
  # One of an earlier turn that waits for the lock, or for its next try, would end this one.
  run_logged systemctl daemon-reload && run_logged systemctl stop homelab-turn.service && run_logged systemctl restart homelab-turn.timer
}

is_turn_end_armed() { is_there "$TURN_END_LINK" && is_there "$TURN_END_UNITS/homelab-turn.timer" && is_there "$TURN_END_PROGRAM"; }

disarm_turn_end() {
  is_there "$TURN_END_LINK" || is_there "$TURN_END_UNITS/homelab-turn.timer" || is_there "$TURN_END_PROGRAM" || return 0
  run_logged systemctl stop homelab-turn.timer || log "homelab-turn.timer could not be stopped: $OUTPUT"
  # A try that failed waits for the next one, unless this is one.
  [[ ${EXPIRING:-no} == yes ]] || run_logged systemctl stop --no-block homelab-turn.service || log "homelab-turn.service could not be stopped: $OUTPUT"
  remove_file "$TURN_END_LINK" "$TURN_END_UNITS/homelab-turn.timer" "$TURN_END_UNITS/homelab-turn.service" "$TURN_END_PROGRAM" || return 1
  run_logged systemctl daemon-reload || log "systemctl daemon-reload failed: $OUTPUT"
}

turn_end_service() {
  cat <<'UNIT'
# Written by homelab: puts back what was set for this node's restart, if no `pulumi up` has. Gone then.
[Unit]
Description=homelab: end this node's turn to restart
ConditionPathExists=/var/lib/homelab/turn-end
After=network-online.target pve-cluster.service corosync.service
StartLimitIntervalSec=0

[Service]
Type=oneshot
ExecStart=/bin/bash /var/lib/homelab/turn-end expire
Restart=on-failure
RestartSec=60
UNIT
}

turn_end_timer() {
  cat <<UNIT
# Written by homelab: see homelab-turn.service.
[Unit]
Description=homelab: wait for the end of this node's turn to restart

[Timer]
# From now on, and from each boot on.
OnActiveSec=${AWAY_SECONDS}s
AccuracySec=1s

[Install]
WantedBy=timers.target
UNIT
}

in_a_line() { # TEXT
  local text=${1:0:300}
  [[ -n ${text//[[:space:]]/} ]] || text="no answer within $ASK_SECONDS s"
  printf '%s' "${text//[[:cntrl:]]/ }"
}
