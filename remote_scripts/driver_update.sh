#!/usr/bin/env bash
# The end of an update of NVIDIA's driver that had to wait for a boot: the new one was seen at work, or the old one comes back.
# Needs: packages, driver, driver/kept, driver/packages
#
# Arguments: TARGET (vm, host or lxc), those of packages.sh.
# Changes: what nvidia_driver.sh has kept of the driver before goes (`confirm`), or is put back (`back`).
# Verbs: confirm, back. Where no update waits, they change nothing.
# Answer: {"old": the version that is back, or empty, "now": what is so now, in words}.

LAYER=nvidia-driver
DOING="NVIDIA's driver, put back"

confirm() {
  take_lock
  if [[ $(update_phase) == tried ]]; then
    close_update
    finish
  fi
  printf '{"old":"","now":""}\n'
}

back() {
  local old new
  take_lock
  MAY_REMOVE=$FAMILY
  if [[ $(update_phase) != tried || -s $STATE/update/lost ]]; then
    printf '{"old":"","now":""}\n'
    return 0
  fi
  old=$(kept_version) new=$(library_version)
  enter_phase back
  in_shell_of_its_own restore_driver || die "$(failure_part wanted)" "$(failure_part found)" \
    "the update to $new doesn't work, and the driver $old could not be put back: $(failure_part why)" \
    "$(failure_part next), then run \`pulumi up --refresh\`: it first goes on with putting $old back"
  printf '%s\n' "$new" | write_atomically /var/lib/homelab/given-up 0600
  close_update
  finish
  printf '{"old":%s,"now":%s}\n' "$(json_string "$old")" "$(json_string "$(<"$LOGS/answered")")"
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
