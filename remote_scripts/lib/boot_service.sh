#!/usr/bin/env bash
# A service of ours that is started at each boot, with a program of ours or without.
# Needs: files, lock
#
# Gives: enable_boot_service SERVICE LINK WHY; drop_boot_service LAYER PROGRAM SERVICE LINK. LINK is what `enable` makes.

# enable_boot_service SERVICE LINK WHY - where a file of it has changed (CHANGED), systemd hasn't read it, or it isn't enabled. WHY: what it is without it.
enable_boot_service() {
  [[ $CHANGED == yes || ! -L $ROOT$2 ]] || is_outdated "$1" || return 0
  run_logged systemctl daemon-reload || :
  run_logged systemctl enable --quiet "$1" || die "$1 enabled" "$OUTPUT" "$3" "correct what systemctl says, then run \`pulumi up\` again"
}

# is_outdated UNIT - does systemd know it as it was before, such as where an earlier run was cut short behind the file?
is_outdated() { [[ $(exec_within "$ASK_SECONDS" systemctl show -p NeedDaemonReload --value "$1" 2>/dev/null) == yes ]]; }

# drop_boot_service LAYER PROGRAM SERVICE LINK - PROGRAM: empty where the service needs none of ours. The link goes also where the service's file
# is gone.
drop_boot_service() {
  [[ ! -L $ROOT$4 ]] || run_logged systemctl disable "$3" || rm -f "$ROOT$4"
  drop_file "$1" "/etc/systemd/system/$3"
  [[ -z $2 ]] || drop_file "$1" "$2"
  [[ $CHANGED == no ]] || run_logged systemctl daemon-reload || :
}
