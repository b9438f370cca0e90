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
    write_files
    if [[ $CHANGED == yes || ! -L $ROOT$CARDS_ENABLED ]]; then
      run_logged systemctl daemon-reload || :
      run_logged systemctl enable "$SERVICE" || die "$SERVICE enabled" "$OUTPUT" \
        "a boot may give the cards' nodes other numbers, and containers would not start, or get another card" \
        "correct what systemctl says, then run \`pulumi up\` again"
    fi
  else
    take_away
  fi
  finish
  printf '{"changed":"%s"}\n' "$CHANGED"
}

plan() {
  PLANNING=yes
  if [[ $NEEDED == yes ]]; then
    write_files
    [[ -L $ROOT$CARDS_ENABLED ]] || note_planned new "$CARDS_ENABLED"
  else
    drop_file cards "/etc/systemd/system/$SERVICE"
    drop_file cards "$INSTALLED"
  fi
  answer_planned
}

write_files() {
  put_file cards "$INSTALLED" 0755 "$PROGRAM"
  put_file cards "/etc/systemd/system/$SERVICE" 0644 "$UNIT"
}

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
