#!/usr/bin/env bash
# What the host runs at each boot before its guests start: the kernel may have given the cards' nodes other names and numbers, and the lines
# that containers were given for them follow (lib/container/follow.sh).
# Needs: container, guests
#
# Arguments: WAIT (seconds for the cards' drivers to come), QUORUM (seconds for /etc/pve to be writable).
#   Of a container what is noted counts; CARDS, METHOD, MINORS and FUNCTIONS have no part in it.
# Changes: the configurations of containers that were given cards; lines of ours alone. Whatever fails, the host starts its guests.
# Verbs: none: it does this; or a function's name and its arguments, such as `mend CTID`, which is one container of it. `follow_containers` does it while the host
#   runs, for containers that are off, and for who has this host's lock already: a card that comes back from a VM may have another number.

LOCK_TIMEOUT=20
RUN_SECONDS=60
# Of all together: below the time at which systemd ends the service, maybe in the middle of a change.
ALL_SECONDS=240

mend_all() {
  trap - ERR EXIT
  set +eu
  local dir ids=() waited=0 text left
  for dir in "$STATE"/containers/*/; do
    CTID=${dir%/} CTID=${CTID##*/}
    [[ ! $CTID =~ ^[1-9][0-9]*$ || ! -e $ROOT$PVE_LXC/$CTID.conf || ! -s $dir/nodes ]] || ids+=("$CTID")
  done
  ((${#ids[@]} > 0)) || return 0
  until all_there || ((waited >= WAIT)); do
    sleep 1
    waited=$((waited + 1))
  done
  for CTID in "${ids[@]}"; do
    # Each for itself: what keeps one from being mended keeps no other.
    while left=$((ALL_SECONDS - SECONDS)) && ((left > 0)); do
      text=$(exec_within "$((left < 120 ? left : 120))" "$0" mend "$CTID" 2>&1) || [[ $text != *"no quorum"* ]] || ((SECONDS >= QUORUM)) || { sleep 2 && continue; }
      break
    done
    ((left > 0)) || text="container $CTID: there was no time left to look after its cards' nodes"
    [[ -z $text ]] || printf '%s\n' "$text"
  done
}

# all_there - have the drivers made every node that one of `ids` was given of a card?
all_there() {
  local CTID path address kind
  for CTID in "${ids[@]}"; do
    while read -r path _ address kind _; do
      [[ $address != - ]] || continue
      find_now "$path" "$address" "$kind"
      [[ -n $NOW ]] || return 1
    done < <(noted nodes)
  done
}

follow_containers() {
  trap - ERR EXIT
  set +eu
  local dir text
  for dir in "$STATE"/containers/*/; do
    CTID=${dir%/} CTID=${CTID##*/}
    [[ $CTID =~ ^[1-9][0-9]*$ && -e $ROOT$PVE_LXC/$CTID.conf && -s $dir/nodes ]] || continue
    # A running one has what it was started with.
    find_power pct "$CTID"
    [[ $POWER_NOW != unknown ]] || printf 'container %s: whether it runs is not known, so that its cards'"'"' nodes were not looked after: %s\n' "$CTID" "$POWER_SAID"
    [[ $POWER_NOW == off ]] || continue
    text=$(exec_within 60 "$0" mend "$CTID" held 2>&1)
    [[ -z $text ]] || printf '%s\n' "$text"
  done
}

mend() { # CTID [held]
  CTID=$1 AT_BOOT=yes CHANGED=no
  if [[ ${2:-} == held ]]; then
    make_run_dir
    exec {LOCK}>/dev/null
    HELD=yes
  else
    take_lock
  fi
  need_container
  # It has what its configuration says when it starts.
  [[ ! -e $ROOT$RECORDS/$CTID/restart ]] || is_up || in_force
  read_conf
  follow_nodes
  ((${#ABSENT[@]} == 0)) || message "the nodes of container $CTID's cards" "not there after $WAIT s: ${ABSENT[*]}" \
    "it may not start, or start without them" "see \`dmesg | grep -iE 'drm|i915|amdgpu'\` on the host"
  changes_something || return 0
  set_up
  log "container $CTID: its cards' nodes have other names or numbers since this boot, and its configuration has these now"
  finish
}

main() {
  if (($# > 0)); then "$@"; else mend_all; fi </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
