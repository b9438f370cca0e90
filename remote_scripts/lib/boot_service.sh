#!/usr/bin/env bash
# A service of ours that is started at each boot, with a program of ours or without.
# Needs: files, lock
#
# Gives: drop_boot_service LAYER PROGRAM SERVICE LINK.

# drop_boot_service LAYER PROGRAM SERVICE LINK - PROGRAM: empty where the service needs none of ours; LINK: what `enable` made, also where the
# service's file is gone.
drop_boot_service() {
  [[ ! -L $ROOT$4 ]] || run_logged systemctl disable "$3" || rm -f "$ROOT$4"
  drop_file "$1" "/etc/systemd/system/$3"
  [[ -z $2 ]] || drop_file "$1" "$2"
  [[ $CHANGED == no ]] || run_logged systemctl daemon-reload || :
}
