#!/usr/bin/env bash
# Tells the other nodes of a cluster that this one is back from the restart that it had its turn for.
# Needs: absent, cluster
#
# Arguments: LOCK_TIMEOUT (seconds to wait for another run), OVER_SECONDS (to wait for the cluster), RETURN_SECONDS (to wait for
#   guests that HA brings back), NODE (for `lift`).
# Changes: puts back what was set for the restart (lib/away.sh), removes /etc/pve/priv/homelab-reboot, if it is this node's, and
#   /var/lib/homelab/turn (of lib/cluster.sh and lib/cluster/over.sh).
# Answer: {"over":"yes|no","set":what is still set, for a person}; of `lift` {"lifted":"yes|no|none"}
# Verbs: apply; expire (of the node's own timer: the same, and it fails where the turn isn't over, so that it is tried again); lift (on another
#   node than NODE, which hasn't come back: Ceph is to replace its disks).

apply() {
  local over=yes
  take_lock
  end_turn "$OVER_SECONDS" || over=no
  finish
  # The node goes on trying at once, not when its timer's time is over.
  [[ $over == yes ]] || is_restart_ordered || ! is_turn_end_armed || run_logged systemctl start --no-block homelab-turn.service || log "homelab-turn.timer starts it later: $OUTPUT"
  printf '{"over":"%s","set":%s}\n' "$over" "$(json_string "$([[ $over == yes ]] || still_set)")"
}

expire() {
  EXPIRING=yes
  take_lock
  if ! end_turn "$OVER_SECONDS"; then
    finish # what could be put back is
    die "what was set for this node's restart put back" "not all of it could be: $(still_set)" "until then it holds" \
      "nothing: homelab-turn.service tries again in a minute"
  fi
  finish
  printf '{"over":"yes"}\n'
}

lift() {
  lift_noout_of "$NODE"
  printf '{"lifted":"%s"}\n' "$LIFTED"
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
