#!/usr/bin/env bash
# Reboots the host if its running kernel lacks what is configured; with a dead man's switch armed before, if that is in the boot configuration.
# Needs: absent, boot, cluster, lacking, maintenance, ran, restart, switch/arm
#
# Arguments: POLICY (auto | manual), WORDS (of the command line; separated by spaces), FUNCTIONS (PCI addresses that must be on
#   vfio-pci; separated by spaces), DRIVER, FLAVOUR and SOURCE (NVIDIA's driver, as of lib/lacking.sh, which decides),
#   ROLLBACK_AFTER and ROLLBACK (of the dead man's switch, lib/switch.sh), AWAITED (for so many seconds `up` waits for the boot), QUORUM,
#   HA_MODE and TURN_END (of lib/cluster.sh), RAN_PROGRAM (of lib/ran.sh).
# Not while a backup, a migration, another task or an installation of packages runs here (lib/work.sh). In a cluster: not before the other
#   nodes have their quorum without this one, and no other restarts; cluster_turn.sh ends the turn. Meanwhile Ceph doesn't replace this node's disks
#   (lib/ceph.sh), and HA has its guests on other nodes where HA_MODE is maintenance (lib/maintenance.sh).
# Changes: /etc/systemd/system/homelab-rollback.{service,timer}, /var/lib/homelab/rollback and armed; then the host restarts.
#   /var/lib/homelab/ran and ran-program, /etc/systemd/system/homelab-ran.{service,timer}: which guests ran, for the next boot to start those again; gone then.
#   /var/lib/homelab/wanted-boot, which `revert` of cmdline.sh takes away.
#   In a cluster with Ceph: `noout` for this node's disks; with HA_MODE=maintenance HA's maintenance mode; for each /var/lib/homelab/away and turn-end, /etc/systemd/system/homelab-turn.{service,timer}.
#   Undone by confirm_boot.sh and cluster_turn.sh once the host is back, by the switch itself otherwise.
# The switch: unless the boot is confirmed within ROLLBACK_AFTER seconds of its start, it takes our configuration away and
#   reboots. So a host that comes back without its network comes back again, as it was. Where nobody waits, the host judges itself.
# Verbs: apply; plan (answers the same, before or after the layers were written, and changes nothing).
# Answer: {"reboot":"yes|no|manual","boot_id","reasons":[why],"perhaps":[what would be a reason],"guests":what a reboot stops,
#   "moves":what is on other nodes meanwhile,"cluster":why
#   it waits: what runs here, or why the cluster can't do without this node now}; of `apply` also "turn":has it a turn in the cluster, which is to end (yes | no), and "armed":since
#   when the switch is (seconds since 1970; empty: it isn't). An `up` that has armed it anew confirms this boot anew.

# For so long the cluster is waited for, in seconds: a node that was verified a moment ago has its vote back within a minute.
TURN_SECONDS=180
# For so long HA may move its guests: their memory goes over the network.
MOVE_SECONDS=1800

apply() {
  take_lock
  local moving=0 armed=no
  [[ $HA_MODE == keep ]] || moving=$MOVE_SECONDS
  AWAY_SECONDS=$((AWAITED + ROLLBACK_AFTER + moving))
  need_boot_loader
  decide
  note_wanted_boot
  if [[ $DECISION == no ]]; then
    log "no reboot is needed: the running kernel has what is wanted"
    # A roll-back of an earlier boot is no news to what is wanted now. (One of this boot is about to restart it.)
    is_rolling_back || grep -qs "^boot $(boot_id) " "$STATE/rolled-back" || remove_file /var/lib/homelab/rolled-back
    end_turn 0 || : # of an earlier run; whoever verifies this boot waits for the cluster
    drop_ran
  elif [[ $DECISION == manual ]]; then
    log "a reboot is needed (${REASONS[*]}) and left to you"
  else
    ! is_pending boot || die "this host restarted with what was configured" "the boot configuration was not made after the last change (/var/lib/homelab/pending/boot)" \
      "it would start with what was configured before, and be restarted again and again" "run \`pulumi up --refresh\`, which makes it; then this host restarts"
    ! is_clustered || lift_noout_of_absent
    await_cluster "$TURN_SECONDS" || refuse_turn
    log "rebooting (${REASONS[*]}); this stops: ${GUESTS:-no guest}${MOVES:+; on other nodes meanwhile: $MOVES}"
    ! needs_switch || { arm "$AWAITED" && armed=yes; }
    finish
    # Last, so that no failure before it keeps others waiting. Each wait may end this script, too (go_on).
    ALSO_PUT_BACK=stay_up
    if ! take_turn "$TURN_SECONDS" || ! move_guests_away || ! await_boot_from_now; then refuse_turn; fi
    if ! note_running || ! note_restart || ! restart_soon; then
      die "a reboot of this host" "$OUTPUT" "the running kernel lacks what was configured" "reboot it by hand, then run \`pulumi up\` again"
    fi
  fi
  ALSO_PUT_BACK=:
  report ",\"turn\":\"$(has_turn && printf yes || printf no)\",\"armed\":\"$(stat -c %.Y "$STATE/armed" 2>/dev/null)\""
}

# stay_up - there is no restart after all.
stay_up() {
  drop_restart
  drop_ran
  [[ ! -e $STATE/armed ]] || await_no_boot
  end_turn "$TURN_SECONDS"
}

# move_guests_away - where HA_MODE says so; status 1: not now, WHY_NOT says why.
move_guests_away() {
  [[ $HA_MODE != keep && $ALONE == no ]] && is_clustered || return 0
  enter_maintenance "$MOVE_SECONDS" || return 1
  # That took up to half an hour: the votes, Ceph and what is at work are asked anew.
  await_cluster "$TURN_SECONDS" || return 1
  # A restart that nobody waits for would be undone by the switch.
  is_awaited || { WHY_NOT="the \`pulumi up\` that waited for this host isn't there any more" && return 1; }
}

# await_boot_from_now - of `apply`, which says whether it has armed the switch. The time for which an `up` waits begins here: all that was waited for before took its own.
await_boot_from_now() {
  if [[ ! -e $STATE/armed ]]; then
    [[ $armed == no ]] || { WHY_NOT="the dead man's switch for this restart was taken away meanwhile (/var/lib/homelab/armed)" && return 1; }
    return 0
  fi
  await_boot "$AWAITED" || { WHY_NOT="/var/lib/homelab/armed can't be written" && return 1; }
}

# needs_switch - is there anything that a roll-back would give back, and is it new to the next boot? A reboot for NVIDIA's driver alone
# brings the boot configuration that runs already.
needs_switch() {
  ! is_all_given_back || return 1
  [[ -e $STATE/armed ]] || ((OF_BOOT > 0))
}

plan() {
  need_boot_loader
  decide
  [[ $DECISION != yes ]] || cluster_says
  report
}

# decide - sets DECISION (yes, no or manual), REASONS, PERHAPS, GUESTS and MOVES.
decide() {
  what_is_lacking
  LEAVING=''
  if ((${#REASONS[@]} + ${#PERHAPS[@]} > 0)) && [[ $HA_MODE != keep ]] && is_clustered; then
    LEAVING=$(services_here) || LEAVING=''
  fi
  name_guests
  DECISION=no
  ((${#REASONS[@]} == 0)) || DECISION=yes
  [[ $DECISION == no || $POLICY != manual ]] || DECISION=manual
  WHY_NOT=''
}

report() {
  printf '{"reboot":"%s","boot_id":"%s","reasons":' "$DECISION" "$(<"$ROOT/proc/sys/kernel/random/boot_id")"
  json_list "${REASONS[@]}"
  printf ',"perhaps":'
  json_list "${PERHAPS[@]}"
  json_entry guests "$GUESTS"
  json_entry moves "$MOVES"
  json_entry cluster "$WHY_NOT"
  printf '%s}\n' "${1:-}"
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
