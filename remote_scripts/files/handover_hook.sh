#!/bin/sh
# Written by homelab, which takes it away again (pulumi destroy): hands a card from this host's containers to a VM that starts, and back.
# Without the program nobody has looked whether the card is free, and its driver may wait for ever: the VM stays off then.
program=${ROOT:-}/usr/local/sbin/homelab-handover
if [ ! -x "$program" ]; then
  [ "$2" = pre-start ] || exit 0
  echo "homelab: $program, which hands VM $1 its card, is not there: run pulumi up, or qm set $1 --delete hookscript where the VM has no card any more"
  exit 1
fi
exec "$program" hook "$1" "$2"
