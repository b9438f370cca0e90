#!/usr/bin/env bash
# Who of this host uses a card: containers by their configuration, NVIDIA's persistence daemon.
# Needs: handover/state, handover/card, handover/numbers, container/conf, guests, nvidia
#
# Gives: container_runs CTID; find_users -> USERS, REFUSED; is_gone CTID; in_order CTID... -> ORDERED; stop_users, find_stop_unit CTID -> STOP_UNIT; start_users; settle_persistence, restore_persistence;
#   has_card, gives_node PATH. Takes, of handover/follow: is_about_it.

# container_runs CTID - 0: yes, 1: no, 2: nobody knows.
container_runs() {
  find_power pct "$1"
  case $POWER_NOW in on) return 0 ;; off) return 1 ;; *) return 2 ;; esac
}

# find_users - sets USERS: the containers that run and have the card by their configuration, in the order in which they are shut down. Status 1, with
# REFUSED: one of them can't be.
find_users() {
  local file found='' status
  USERS=() REFUSED=''
  for file in "$ROOT"/etc/pve/lxc/[1-9]*.conf; do
    [[ -e $file ]] || continue
    CTID=${file##*/} CTID=${CTID%.conf}
    read_conf || { REFUSED="the configuration of container $CTID can't be read" && return 1; }
    has_card || continue
    status=0
    container_runs "$CTID" || status=$?
    ((status != 1)) || continue
    ((status == 0)) || { REFUSED="whether container $CTID runs can't be told (\`pct status $CTID\`)" && return 1; }
    if [[ -n $LOCKED ]]; then
      REFUSED="container $CTID, which uses the card, is locked: $LOCKED"
    elif is_under_ha; then
      REFUSED="container $CTID, which uses the card, is under HA, which would start it again"
    fi
    [[ -z $REFUSED ]] || return 1
    found+="$CTID "
  done
  # shellcheck disable=SC2086 # numbers
  in_order $found
  USERS=("${ORDERED[@]}")
}

# is_gone CTID - was it destroyed, or moved to another node? While Proxmox VE's own folder isn't there, such as at a restart of its service, nobody is.
is_gone() { [[ -d $ROOT/etc/pve/lxc && ! -e $ROOT/etc/pve/lxc/$1.conf ]]; }

# in_order CTID... - sets ORDERED: each once, as they are shut down: the order of the host's start, backwards. By bash itself: none is lost where a program fails.
in_order() {
  local CTID id other rest
  local -A ranks=()
  for CTID in "$@"; do
    STARTUP=''
    [[ ! -e $ROOT/etc/pve/lxc/$CTID.conf ]] || ! read_conf || find_startup order
    ranks[$CTID]=$((10#${STARTUP:-99999}))
  done
  ORDERED=()
  for id in "${!ranks[@]}"; do
    rest=()
    for other in "${ORDERED[@]}"; do
      if [[ -n $id ]] && ((ranks[$id] > ranks[$other] || (ranks[$id] == ranks[$other] && id > other))); then
        rest+=("$id")
        id=''
      fi
      rest+=("$other")
    done
    [[ -z $id ]] || rest+=("$id")
    ORDERED=("${rest[@]}")
  done
}

# find_startup KEY - sets STARTUP: of the container that was read: of its option `startup`.
find_startup() {
  local line
  STARTUP=''
  for line in "${HEAD[@]}"; do
    [[ ! $line =~ ^startup:.*$1=([0-9]+) ]] || STARTUP+=${BASH_REMATCH[1]}
  done
}

# has_card - does the configuration that was read give one of the card's nodes?
has_card() {
  local node
  find_minor "$GPU"
  ! gives_node "/dev/nvidia$NUMBER" || return 0
  find_drm_names
  for node in $DRM_NAMES; do ! gives_node "/dev/dri/$node" || return 0; done
  return 1
}

gives_node() { # PATH
  local index value
  for value in "${DEV[@]}"; do
    find_dev_path "$value"
    [[ $DEV_PATH != "$1" ]] || return 0
  done
  for index in "${!LXC_KEY[@]}"; do
    [[ ${LXC_KEY[index]} != lxc.mount.entry ]] || ! binds "${LXC_VALUE[index]}" "$1" || return 0
  done
  return 1
}

# find_stop_unit CTID - sets STOP_UNIT, in which it is shut down: by a child of ours that went on after us, a container would go off that was seen to run.
find_stop_unit() { STOP_UNIT=homelab-handover-$CARD-stop-$1; }

# stop_users - those of S[containers], within their own time (startup: down=), else a minute; then their power is cut.
stop_users() {
  local id
  for id in ${S[containers]}; do stop_user "$id" || return 1; done
}

# stop_user CTID - status 1, with REFUSED: it doesn't go off. It may be off, or gone: one that an earlier handover could not start again.
stop_user() {
  local seconds
  CTID=$1
  ! is_gone "$CTID" || return 0
  container_runs "$CTID"
  (($? != 1)) || return 0
  REFUSED="the configuration of container $CTID can't be read"
  read_conf || return 1
  # Proxmox VE would refuse it, with a failed task each time.
  [[ -z $LOCKED ]] || { REFUSED="container $CTID doesn't go off: it is locked ($LOCKED)" && return 1; }
  ! is_under_ha || { REFUSED="container $CTID doesn't go off: it is under HA by now, which would start it again" && return 1; }
  find_startup down
  seconds=$((10#${STARTUP:-60}))
  say "shutting container $CTID down, which has the card"
  find_stop_unit "$CTID"
  bounded $((seconds + 120)) systemd-run -q --wait --collect --pipe --unit="$STOP_UNIT" pct shutdown "$CTID" --timeout "$seconds" --forceStop 1
  container_runs "$CTID"
  (($? == 1)) || { REFUSED="container $CTID doesn't go off: ${OUTPUT:-no answer}" && return 1; }
}

# start_users - the same ones, the other way round. S[containers] is then those that are still to be started. Status 1, with REFUSED: one didn't start.
start_users() {
  local ids=() index off=''
  read -ra ids <<<"${S[containers]:-}"
  REFUSED=''
  for ((index = ${#ids[@]} - 1; index >= 0; index--)); do
    CTID=${ids[index]}
    ! is_gone "$CTID" || continue
    container_runs "$CTID" && continue
    if ! is_about_it; then
      find_numbers
      off="$CTID${off:+ }$off"
      REFUSED+="${REFUSED:+; }its nodes have other numbers than before (${S[numbers]} -> $NUMBERS), and container $CTID has lines with the earlier ones, which this program hasn't written: it stays off. Correct them, then start it"
      continue
    fi
    say "starting container $CTID again"
    bounded 180 pct start "$CTID"
    container_runs "$CTID" && continue
    off="$CTID${off:+ }$off"
    REFUSED+="${REFUSED:+; }container $CTID has not started: ${OUTPUT:-no answer}"
  done
  S[containers]=$off
  [[ -z $REFUSED ]]
}

# settle_persistence - the persistence mode is off for the card, and where the whole driver is to go, its daemon has ended.
settle_persistence() {
  [[ ${S[persistence]} != Enabled ]] || bounded 30 nvidia-smi -i "$GPU" -pm 0 || { REFUSED="its persistence mode stays on: $OUTPUT" && return 1; }
  [[ -z ${S[units]} ]] || bounded 60 systemctl stop "${S[units]}" || { REFUSED="${S[units]} doesn't stop: $OUTPUT" && return 1; }
}

restore_persistence() {
  [[ -z ${S[units]:-} ]] || bounded 60 systemctl start "${S[units]}" || say "${S[units]} has not started again: $OUTPUT"
  [[ ${S[persistence]:-} != Enabled ]] || bounded 30 nvidia-smi -i "$GPU" -pm 1 || bounded 30 nvidia-smi -i "$GPU" -pm 1 || say "its persistence mode could not be switched on again: $OUTPUT"
}
