#!/usr/bin/env bash
# Tells the other nodes of a cluster that this one is back from the restart that it had its turn for.
# Needs: cluster
#
# Arguments: LOCK_TIMEOUT (seconds to wait for another run), OVER_SECONDS (to wait for the cluster).
# Changes: removes /etc/pve/priv/homelab-reboot, if it is this node's, and /var/lib/homelab/turn (both of lib/cluster.sh).
# Answer: {"over":"yes|no"}
# Verbs: apply.

apply() {
  local over=yes
  take_lock
  end_turn "$OVER_SECONDS" || over=no
  finish
  printf '{"over":"%s"}\n' "$over"
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
