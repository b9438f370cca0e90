#!/usr/bin/env bash
# Where a host has what hands cards over.
#
# Gives: HANDOVER (what is going on with each card, and the story), INSTALLED, HOOK_FILE, HOOKED (VMs that were given the hookscript).
HANDOVER=/var/lib/homelab/handover
INSTALLED=/usr/local/sbin/homelab-handover
HOOK_FILE=homelab-handover.sh
HOOKED=/var/lib/homelab/handover-hooks
