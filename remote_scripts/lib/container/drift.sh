#!/usr/bin/env bash
# How a container differs from what was set up; and whether the nodes that are planned for it could be opened in it.
# Needs: container/plan
#
# Gives: container_drift; need_open_nodes.

# container_drift - a sentence for each difference between what was set up and what there is.
container_drift() {
  local line index path
  if [[ ! -e $ROOT$PVE_LXC/$CTID.conf ]]; then
    printf 'container %s is gone\n' "$CTID"
    return 0
  fi
  read_conf
  noted_groups
  find_devices
  look_up
  for path in "${MISSING[@]}"; do printf '%s is not on the host\n' "$path"; done
  ((${#MISSING[@]} == 0)) || return 0
  plan
  for line in "${ADD_DEV[@]}"; do printf 'dev[n]: %s is not there\n' "$line"; done
  for line in "${ADD_LXC[@]}"; do printf '%s is not there\n' "$line"; done
  for index in "${!DROP_DEV[@]}"; do printf 'dev%s: %s is of no use any more\n' "$index" "${DEV[$index]}"; done
  for index in "${!DROP_LXC[@]}"; do printf '%s is of no use any more\n' "${HEAD[index]}"; done
  [[ ! -e $ROOT$RECORDS/$CTID/restart ]] || printf 'container %s still has to be restarted\n' "$CTID"
}

# need_open_nodes - a mount entry's node is the host's, for the host's groups. In an unprivileged container these are nobody's.
need_open_nodes() {
  local path closed=()
  [[ $METHOD == mount-entry && $UNPRIVILEGED == yes ]] || return 0
  for path in "${CARD_NODES[@]}"; do
    find_provider "$path"
    [[ -n $PROVIDER || ${MODE[$path]} == *[67] ]] || closed+=("$path (mode ${MODE[$path]})")
  done
  ((${#closed[@]} == 0)) || die "container $CTID, which is unprivileged, given a card's nodes by mount entries" "on the host only their group may open them: ${closed[*]}" \
    "in an unprivileged container the host's groups are nobody's, so that not even its root could open them; its configuration is unchanged" \
    "take method: mount-entry out of the settings; or let the host's udev open them: MODE=\"0666\" for KERNEL==\"renderD*\""
}
