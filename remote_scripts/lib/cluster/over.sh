#!/usr/bin/env bash
# The end of a node's turn: what was set for its restart is put back, and the others may restart. Not while the restart is ordered and still to come: the guests
# would come back to a node that goes away, and another node would restart beside it.
# Needs: files, lock, pve, ceph, maintenance
#
# Gives: has_turn; end_turn SECONDS, give_turn_back, still_set; note_restart, drop_restart, is_restart_ordered. Takes, of cluster: is_own_turn, hold_turn_lock, free_turn_lock, TURN.
# Variables: RETURN_SECONDS (for so long the end of a turn waits for guests that HA brings back; none: not at all).
#
# RUN/ordered: `BOOT SECONDS`, in which boot and when (since 1970) its restart was ordered.
# HA follows within a round of its manager and one of its agent, ten seconds each; monitors of Ceph have a quorum some time after a boot.
GIVE_BACK_SECONDS=90
# An order that hasn't ended the boot by then isn't carried out any more.
ORDERED_SECONDS=900

has_turn() { [[ -e $STATE/turn ]]; }

# note_restart - before it is ordered. The next boot knows nothing of it.
note_restart() {
  OUTPUT="/run/homelab/ordered can't be written"
  printf '%s %s\n' "$(<"$ROOT/proc/sys/kernel/random/boot_id")" "$(date +%s)" 2>/dev/null >"$RUN/ordered"
}

drop_restart() { rm -f "$RUN/ordered"; }

is_restart_ordered() {
  local boot since age
  { read -r boot since <"$RUN/ordered"; } 2>/dev/null || return 1
  [[ $boot == "$(<"$ROOT/proc/sys/kernel/random/boot_id")" && $since =~ ^[1-9][0-9]{0,11}$ ]] || return 1
  age=$(($(date +%s) - since))
  ((age > -60 && age < ORDERED_SECONDS)) # a clock that was set back isn't waited for
}

# end_turn SECONDS - status 1: the others couldn't be told in this time. (A node that has just started has no quorum for some seconds, and perhaps no /etc/pve.)
end_turn() {
  local until=$((SECONDS + $1))
  has_turn || return 0
  ! is_restart_ordered || return 1
  told_from_now
  until is_turn_over; do
    ((SECONDS < until)) || return 1
    tell_now_and_then "waiting for the cluster: its other nodes are to know that this one is back"
    sleep 1
  done
  await_services "${RETURN_SECONDS:-0}"
  remove_file /var/lib/homelab/turn
}

# give_turn_back - for `destroy`: now, or the node's own timer does it. Nothing that is still set is forgotten.
give_turn_back() {
  local seconds=10 over=no
  [[ ! -e $STATE/away ]] || seconds=$GIVE_BACK_SECONDS
  ! end_turn "$seconds" || over=yes
  [[ $over == no ]] || return 0
  finish
  if is_turn_end_armed; then
    log "note: the node goes on by itself (homelab-turn.service), and takes that away when it is done; until then $(still_set)"
    run_logged systemctl start --no-block homelab-turn.service || log "homelab-turn.timer starts it later: $OUTPUT"
  elif [[ -e $STATE/away ]]; then
    die "what was set for this node's restart put back" "not all of it could be: $(still_set)" "it would stay set for ever" \
      "see why the cluster doesn't take it (\`pvecm status\`, \`ceph -s\`, \`ha-manager status\`), then run \`pulumi destroy\` again"
  else
    log "note: the cluster could not be told that this node doesn't restart: $(still_set)"
    remove_file /var/lib/homelab/turn
  fi
}

# still_set - in words, with the commands.
still_set() {
  local noout node
  find_away_note noout
  noout=$AWAY_NOTED
  find_away_note maintenance
  node=$AWAY_NOTED
  printf '%s' "no node of the cluster restarts: rm $TURN${noout:+; Ceph replaces none of these disks: ceph osd rm-noout $noout}${node:+; HA keeps its guests away: ha-manager crm-command node-maintenance disable $node}"
}

# is_turn_over - each part for itself: one that fails keeps no other from being put back.
is_turn_over() {
  local path status=0
  leave_maintenance || status=1
  let_disks_go || status=1
  ((status == 0)) && pve test -L "$ROOT/etc/pve/local" && disarm_turn_end || return 1
  is_own_turn "$TURN" || is_own_turn "$TURN.new" || return 0
  hold_turn_lock || return 1
  for path in "$TURN" "$TURN.new"; do
    ! is_own_turn "$path" || pve rm -f "$ROOT$path" || status=1
  done
  free_turn_lock
  return "$status"
}
