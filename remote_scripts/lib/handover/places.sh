#!/usr/bin/env bash
# Where a host has what hands cards over.
#
# Gives: HANDOVER (what is going on with each card, and the story), INSTALLED, HOOK_FILE, HOOKED (VMs that were given the hookscript); FOLLOWER (what
#   brings lines of containers to the numbers that cards have now).
HANDOVER=/var/lib/homelab/handover
INSTALLED=/usr/local/sbin/homelab-handover
HOOK_FILE=homelab-handover.sh
HOOKED=/var/lib/homelab/handover-hooks
FOLLOWER=/usr/local/sbin/homelab-card-nodes
