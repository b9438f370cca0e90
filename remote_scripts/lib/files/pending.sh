#!/usr/bin/env bash
# The step that must follow what was written, such as an initramfs made anew: also after a power cut.
# Needs: files/atomic
#
# Gives: pending NAME, is_pending NAME, done_with NAME; about_to_change.
BEFORE_WRITE=: # what has to happen before the first change of this run

# pending NAME / done_with NAME / is_pending NAME - a step that must follow what was written, also after a power cut.
pending() { mark "/var/lib/homelab/pending/$1"; }

is_pending() { [[ -e $STATE/pending/$1 ]]; }

done_with() {
  is_pending "$1" || return 0
  flush_all && remove_file "/var/lib/homelab/pending/$1"
}

# about_to_change - before anything is written or taken away.
about_to_change() {
  local before=$BEFORE_WRITE
  BEFORE_WRITE=:
  "$before"
}
