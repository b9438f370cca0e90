#!/usr/bin/env bash
# The end of an update of NVIDIA's driver that had to wait, for a boot or for a host's containers: the new one was seen at work, or the old one
# comes back.
# Needs: packages, driver, driver/restore, driver/update, guests, handover/rest
#
# Arguments: TARGET (vm, host or lxc), CONTAINERS (of a host: numbers of those that are to follow), those of packages.sh.
# Changes: what nvidia_driver.sh has kept of the driver before goes (`confirm`), or is put back (`back`).
# Verbs: waiting, which changes nothing; confirm, back. Where no update waits, these change nothing either.
# Answer: {"old": the version that is back, or empty, "now": what is so now, in words}; of `waiting` {"update": how far one is, "old": the version
#   that was kept, "new": the one that is installed, "givenUp": the version of an update that was taken back, "running": of CONTAINERS}.

LAYER=nvidia-driver
DOING="NVIDIA's driver, put back"

waiting() {
  local ctid before='' running=()
  take_lock
  [[ -z $(update_phase) ]] || before=$(kept_version 2>/dev/null || :)
  for ctid in ${CONTAINERS:-}; do
    find_power pct "$ctid"
    [[ $POWER_NOW != unknown ]] || die "whether container $ctid runs, which follows the update of the driver" "$POWER_SAID" \
      "a container that hangs is neither on nor off; nothing was changed" "see \`pct status $ctid\` on the host; then run \`pulumi up\` again"
    [[ $POWER_NOW != on ]] || running+=("$ctid")
  done
  printf '{"update":"%s","old":"%s","new":"%s","givenUp":"%s","running":%s}\n' "$(update_phase)" "$before" "$(library_version)" \
    "$(cat "$STATE/given-up" 2>/dev/null || :)" "$(json_list "${running[@]}")"
}

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
  need_rest
  MAY_REMOVE=$FAMILY
  # `trying`: of a container whose run was killed. (A host's own step goes on with that.)
  if [[ ! $TARGET:$(update_phase) =~ ^((vm|host|lxc):(tried|back)|lxc:trying)$ || -s $STATE/update/lost ]]; then
    printf '{"old":"","now":%s}\n' "$(json_string "$(as_it_is)")"
    return 0
  fi
  old=$(kept_version) new=$(library_version)
  # A run before this one, which was cut short, may have put libraries back already.
  [[ ! -s $STATE/update/new ]] || new=$(<"$STATE/update/new")
  write_atomically "$UPDATE/new" 0600 printf '%s\n' "$new"
  enter_phase back
  in_shell_of_its_own restore_driver || die "$(failure_part wanted)" "$(failure_part found)" \
    "the update to $new doesn't work, and the driver $old could not be put back: $(failure_part why)" \
    "$(failure_part next), then run \`pulumi up --refresh\`: it first goes on with putting $old back"
  # A container's update is its host's: that one is named as given up.
  [[ $TARGET == lxc ]] || write_atomically /var/lib/homelab/given-up 0600 printf '%s\n' "$new"
  close_update
  finish
  printf '{"old":%s,"now":%s}\n' "$(json_string "$old")" "$(json_string "$(<"$LOGS/answered")")"
}

# as_it_is - what there is, in words, in a container that has put its libraries back by itself.
as_it_is() {
  [[ $TARGET == lxc ]] || return 0
  if serves_cards "$LOGS/serves"; then
    printf 'its libraries are %s; nvidia-smi answers' "$(library_version)"
  else
    printf 'its libraries are %s; nvidia-smi says: %s' "$(library_version)" "$(tail -n 1 "$LOGS/serves")"
  fi
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
