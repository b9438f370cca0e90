#!/usr/bin/env bash
# The service that brings the nodes of cards in containers to the numbers of each boot, before guests start.
# Needs: boot_service, container/service, files
#
# Arguments: NEEDED (yes | no: does a container have a card?), PROGRAM (card_nodes_boot.sh, composed), UNIT (the service that runs it),
#   GENERATION (no part in what happens).
# Changes: /usr/local/sbin/homelab-card-nodes, /etc/systemd/system/homelab-card-nodes.service, which is enabled.
# Undone by `revert`, and by `apply` where it isn't needed any more: the files and the service.
# Verbs: apply, revert, plan (what `apply` would change, as files.sh answers it).

INSTALLED=/usr/local/sbin/homelab-card-nodes
SERVICE=homelab-card-nodes.service

apply() {
  take_lock
  if [[ $NEEDED == yes ]]; then
    write_boot_service cards "$INSTALLED" "$PROGRAM" "$SERVICE" "$UNIT"
    enable_boot_service "$SERVICE" "$CARDS_ENABLED" \
      "a boot may give the cards' nodes other numbers, and containers would not start, or get another card"
  else
    take_away
  fi
  finish
  printf '{"changed":"%s"}\n' "$CHANGED"
}

plan() { plan_boot_service cards "$INSTALLED" "$PROGRAM" "$SERVICE" "$UNIT" "$CARDS_ENABLED"; }

revert() {
  take_lock
  take_away
  finish
  printf '{"changed":"%s"}\n' "$CHANGED"
}

take_away() { drop_boot_service cards "$INSTALLED" "$SERVICE" "$CARDS_ENABLED"; }

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
