#!/usr/bin/env bash
# What is noted of a container, in /var/lib/homelab/containers/CTID (shared/container_notes.py says what).
# Needs: files
#
# Gives: noted NAME, noted_line NUMBER NAME.

RECORDS=/var/lib/homelab/containers

# noted NAME - that part of the record. By a program: of a disk that fails while it is read, bash's own means don't tell.
noted() { [[ ! -s $ROOT$RECORDS/$CTID/$1 || ! -r $ROOT$RECORDS/$CTID/$1 ]] || cat "$ROOT$RECORDS/$CTID/$1"; }

noted_line() {
  local lines=()
  mapfile -t lines < <(noted "$2")
  printf '%s\n' "${lines[$1 - 1]:-}"
}
