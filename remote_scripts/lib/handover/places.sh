#!/usr/bin/env bash
# Where a host has what hands cards over.
# Needs: lines
#
# Gives: HANDOVER (what is going on with each card, and the story); find_noted FILE KEY -> AS_NOTED.
HANDOVER=/var/lib/homelab/handover

# find_noted FILE KEY - sets AS_NOTED: of a card's state (shared/handover.py), by another one than the program itself; nothing: it isn't noted.
find_noted() {
  find_first "$1" "^$2=(.*)$"
  AS_NOTED=$FIRST
}
