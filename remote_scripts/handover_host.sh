#!/usr/bin/env bash
# What a host runs to hand cards from its containers to a VM that starts, and back when it has stopped: called by VMs' hookscripts, by a service at boot
# and by a timer.
# Needs: handover/take, handover/turn
#
# Arguments: CARDS (as of lib/handover/card.sh).
# Changes: the drivers of a card's functions; containers that run with it are shut down and started; /var/lib/homelab/handover.
# Verbs: hook VMID PHASE; reconcile; step_claim, step_unbind, step_bind, step_release, step_attach, step_nodes CARD, which run in units of their own.

hook() { # VMID PHASE
  local names name before taken=() vmid=$1
  find_cards "$1"
  names=("${NAMES[@]}")
  # A VM that was restored or cloned from one of ours brings the hookscript along.
  if ((${#names[@]} == 0)); then
    [[ $2 != pre-start ]] || ! strangers_card "$1"
    return
  fi
  case $2 in
    pre-start)
      # Before the wait for the host, which a run may have for long; and once more with it.
      ! { must_wait "${names[@]}" || is_for_backup "${names[@]}"; } || return 1
      get_host_for_start "$1" || { tell_who_changes "$1" && return 1; }
      begin_handover || { printf 'homelab: %s\n' "$RUN/handing can't be locked" && return 1; }
      for name in "${names[@]}"; do
        read_card "$name" && load_state "$name"
        names_card "$1" || continue # somebody has taken the card out of it
        take_card "$1" && taken+=("$name") && continue
        for before in "${taken[@]}"; do read_card "$before" && load_state "$before" && give_back "VM $1 didn't get all of its cards"; done
        return 1
      done
      ;;
    post-stop) come_back "$1" "${names[@]}" ;;
  esac
}

# How long a start waits for whoever changes this host, and for a card that is on its way or whose containers are being started again, in seconds: several
# containers may take their time.
START_SECONDS=180
RETURN_SECONDS=900

# get_host_for_start VMID - another handover comes to its end first. Whatever else has the host for that long is a run that was cut off.
get_host_for_start() {
  get_host "$START_SECONDS" && return 0
  (await_handover 0) && return 1
  printf 'homelab: VM %s waits for a card that is on its way, or whose containers are being started again, for %s s at most\n' "$1" "$RETURN_SECONDS"
  (await_handover "$RETURN_SECONDS") && get_host "$START_SECONDS"
}

# tell_who_changes VMID - who has had the host's lock all the time.
tell_who_changes() {
  local who="something else of homelab's has changed this host"
  (await_handover 0) || who="a card has been on its way, or its containers have been starting again ($HANDOVER/log)"
  printf 'homelab: %s for too long; start VM %s again when that has ended\n' "$who" "$1"
}

# must_wait NAME... - is a run at work on this host, and is one of these cards yet to be taken for VM `vmid`, which names it?
must_wait() {
  local name
  run_at_work "$vmid" || return 1
  for name in "$@"; do
    read_card "$name" && load_state "$name"
    if is_to_be_taken "$vmid"; then
      wait_for_run
      return 0
    fi
  done
  return 1
}

# is_for_backup NAME... - does a backup of VM `vmid`, which was off, start it, which names one of these cards and hasn't it yet? It doesn't get it, so that
# nobody waits for that.
is_for_backup() {
  local name
  find_option "$vmid" lock
  [[ $OPTION == backup ]] || return 1
  for name in "$@"; do
    read_card "$name" && load_state "$name"
    is_to_be_taken "$vmid" || continue
    # As take_card has it: by other configuration, there is nothing to hand over.
    [[ ! ${S[state]} =~ ^(HOST|HELD)$ ]] || ! all_on vfio-pci || ! is_that_card || continue
    refuse_backup "$vmid"
    tell "$REFUSED" "nothing was changed; back the VM up while it runs"
    return 0
  done
  return 1
}

# strangers_card VMID - does a VM that isn't ours name a card of ours? Proxmox VE would take it from its driver without a look.
strangers_card() {
  local name
  find_cards
  for name in "${NAMES[@]}"; do
    read_card "$name"
    names_card "$1" || continue
    printf 'homelab: VM %s names gpus.%s, and the settings give that card to VM %s: name the card under the VM in the settings, or take it out of it\n' "$1" "$name" "$VMS"
    return 0
  done
  return 1
}

# come_back VMID NAME... - the VM has ended. Proxmox VE waits for us: the way back is a unit's.
come_back() {
  local vmid=$1 name
  shift
  ! is_stopping || return 0
  [[ ! -e $ROOT/run/qemu-server/$vmid.reboot ]] || return 0
  # A backup in stop mode starts it again at once. Otherwise the timer sees that it is off when the lock is gone.
  find_option "$vmid" lock
  [[ $OPTION != backup ]] || return 0
  if get_host 8; then
    for name in "$@"; do
      read_card "$name" && load_state "$name"
      [[ ${S[state]} != VM || ${S[vm]} != "$vmid" ]] || { save_state state RETURNING && say "VM $vmid has ended"; }
    done
    exec {LOCK}>&-
    LOCK=''
  fi
  # Where it can't be started, the timer does the same within two minutes.
  bounded 10 systemd-run -q --collect --no-block -p RuntimeMaxSec=1800 "$INSTALLED" reconcile || :
}

reconcile() {
  local name
  ! is_stopping || return 0
  # As a start does: not between two steps of a run, but for what that run has started itself; and a run that begins waits for this.
  { get_host 60 && begin_handover; } || return 0
  find_cards
  for name in "${NAMES[@]}"; do
    read_card "$name" || continue
    load_state "$name"
    run_at_work '' || start_owed
    run_at_work "${S[vm]:--}" || settle || :
  done
  return 0
}

# get_host SECONDS - alone: no other handover, and nobody who changes this host.
get_host() { make_run_dir && get_lock "$1" 2>/dev/null; }

leave() { # STATUS
  drop_outputs
  exit "$1"
}

main() {
  trap - ERR EXIT
  set +e
  PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  trap '' PIPE HUP INT TERM
  "$@" </dev/null
  leave "$?"
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
