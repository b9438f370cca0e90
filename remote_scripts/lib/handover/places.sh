#!/usr/bin/env bash
# Where a host has what hands cards over.
#
# Gives: HANDOVER (what is going on with each card, and the story), INSTALLED, HOOK_FILE, HOOKED (VMs that were given the hookscript); FOLLOWER (what
#   brings lines of containers to the numbers that cards have now); let_autoload.
HANDOVER=/var/lib/homelab/handover
INSTALLED=/usr/local/sbin/homelab-handover
HOOK_FILE=homelab-handover.sh
HOOKED=/var/lib/homelab/handover-hooks
FOLLOWER=/usr/local/sbin/homelab-card-nodes
# While it is there, the driver isn't loaded for whoever opens a node of it (staying.sh).
AUTOLOAD=/run/modprobe.d/homelab-handover.conf

# let_autoload - as before.
let_autoload() {
  [[ -e $ROOT$AUTOLOAD ]] || return 0
  rm -f "$ROOT$AUTOLOAD"
  rmdir "$ROOT${AUTOLOAD%/*}" 2>/dev/null || :
}
