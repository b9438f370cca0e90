#!/usr/bin/env bash
# HA's maintenance mode for the time of a node's restart: HA moves the guests that it has here to other nodes, and brings them back afterwards.
# Needs: ha, away, progress
#
# Gives: services_here STATES; maintenance_says -> WHY_NOT; enter_maintenance SECONDS -> WHY_NOT; leave_maintenance, await_services SECONDS.
#   needs_watchdog. Variables: WHY_KIND (of lib/cluster.sh).
#
# STATE/away: `maintenance NODE`, and `services vm:103 …`, those that ran here. A mode that somebody else has switched on is neither noted nor switched off.
# A service that is in none of these states has to leave first.
LEFT_ALONE=' stopped disabled ignored ignore error freeze '
# Of a guest that doesn't run, by HA's will.
STOPPED=' stopped disabled ignored ignore '
# For so long HA may move nothing before it is given up.
STANDSTILL_SECONDS=300

# services_here - those that HA has on this node and would move, a blank behind each. Status 1: no answer.
services_here() {
  local text sid node state here status=0
  has_services || status=$?
  ((status == 0)) || return $((status - 1))
  find_node_name
  here=$NODE_NAME
  text=$(ha_says) || return 1
  while read -r sid node state; do
    [[ $node != "$here" || $LEFT_ALONE == *" $state "* ]] || printf '%s ' "$sid"
  done < <(services_in "$text")
}

# is_in_maintenance - `lrm pve3 (maintenance mode, watchdog standby, Sat Nov 21 03:29:28 2026)`
is_in_maintenance() {
  local text
  find_node_name
  text=$(ha_says) && is_kept_free "$NODE_NAME" "$text"
}

is_kept_free() { [[ $'\n'$2 == *$'\n'"lrm $1 (maintenance mode"* ]]; } # NODE TEXT, of `ha-manager status`

# maintenance_says - what HA can't move is said before anything is changed: it would try again and again.
maintenance_says() {
  local sid services
  if ! services=$(services_here); then
    WHY_KIND=guests WHY_NOT="\`ha-manager status\` gives no answer, and its maintenance mode is to be switched on (guestsAtReboot)"
    return
  fi
  for sid in $services; do
    ! has_device "$sid" || WHY_KIND=guests WHY_NOT="HA can't move $(called_guest "$sid"), which has a device of this host"
  done
}

# has_device SID - one that can't be on another node while the guest runs, as check_local_resources (PVE::QemuServer) and pct's migration say.
# A mapped PCI device can if its mapping says so.
has_device() {
  local text id value
  if [[ $1 == vm:* ]]; then
    text=$(of_now "/etc/pve/qemu-server/${1#*:}.conf")
    ! grep -qE '^(usb[0-9]+: *(.*,)?(host=|mapping=)|(serial|parallel)[0-9]+: */dev/|ivshmem:|virtiofs[0-9]+:|args:.*vfio-pci)' < <(
      grep -vE '^usb[0-9]+: *(host=)?spice(,|$)' <<<"$text"
    ) || return 0
    text=$(grep -E '^hostpci[0-9]+:' <<<"$text") || return 1
    while read -r value; do
      id=$(grep -oE 'mapping=[^,]+' <<<"$value") || return 0
      pve cat "$ROOT/etc/pve/mapping/pci.cfg" | awk -v id="${id#*=}" '
        /^[^ \t]/ { here = $1 == id } here && $1 == "live-migration-capable" && $2 == 1 { found = 1 } END { exit !found }' || return 0
    done <<<"$text"
    return 1
  fi
  text=$(of_now "/etc/pve/lxc/${1#*:}.conf")
  ! grep -qE '^(dev[0-9]+:|lxc\.(cgroup2?\.devices\.allow|mount\.entry *[:=] */dev/))' <<<"$text" || return 0
  grep -E '^mp[0-9]+: *(volume=)?/' <<<"$text" | grep -qvE '(,|: *)shared=1(,|$)'
}

# of_now PATH - a guest's configuration without its snapshots.
of_now() {
  local text status=0
  text=$'\n'$(exec_pve cat "$ROOT$1") || status=$?
  text=${text%%$'\n['*}
  printf '%s\n' "${text#$'\n'}"
  return "$status"
}

called_guest() { # SID
  case $1 in
    vm:*) printf 'VM %s' "${1#*:}" ;;
    *) printf 'container %s' "${1#*:}" ;;
  esac
}

# enter_maintenance SECONDS - until HA has none of its guests here any more, also where the mode is on already.
enter_maintenance() {
  local until node services left said now then='' changed
  WHY_KIND=guests
  find_node_name
  node=$NODE_NAME
  services=$(services_here) || { WHY_NOT="\`ha-manager status\` gives no answer" && return 1; }
  [[ -n $services ]] || return 0
  switch_maintenance_on "$node" || return 1
  log "HA moves $(in_words "$services") to other nodes"
  told_from_now
  until=$((SECONDS + $1)) changed=$SECONDS
  until left=$services && is_in_maintenance && left=$(left_behind "$services") && [[ -z $left ]]; do
    # Where nothing changes, and nothing is on its way, HA has no place for them.
    now=$(ha_says | grep '^service ') || now=''
    [[ $now == "$then" && $now != *", migrate)"* && $now != *", relocate)"* ]] || changed=$SECONDS then=$now
    if ((SECONDS >= until || SECONDS - changed >= STANDSTILL_SECONDS)); then
      WHY_NOT="HA hasn't moved $(in_words "${left:-$services}") to another node within $((SECONDS - until + $1)) s (\`ha-manager status\`)"
      return 1
    fi
    tell_now_and_then "waiting for HA, which moves ${left% } to other nodes"
    sleep 1
  done
}

# switch_maintenance_on NODE - `services` of the caller: those that are noted, beside what an earlier run noted. A mode that somebody else has
# switched on stays on: these guests don't come back with the end of our turn.
switch_maintenance_on() {
  local said
  find_away_note maintenance
  [[ -n $AWAY_NOTED ]] || ! is_in_maintenance || return 0
  find_away_note services
  # shellcheck disable=SC2086 # several ids each
  if ! note_away services "$(printf '%s\n' $AWAY_NOTED $services | awk '!seen[$0]++' | paste -sd ' ')" ||
    ! note_away maintenance "$1"; then
    WHY_NOT="HA's maintenance mode can't be noted on this host"
    return 1
  fi
  if ! said=$(exec_within "$ASK_SECONDS" ha-manager crm-command node-maintenance enable "$1" 2>&1); then
    WHY_NOT="HA's maintenance mode can't be switched on: $(in_a_line "$said")"
    return 1
  fi
}

# left_behind SERVICES - of these, each that is on no other node and hasn't been stopped: HA may have given it up (error), or lost it. And what
# has come here meanwhile. Status 1: no answer.
left_behind() {
  local text sid node state here gone=' ' more=''
  find_node_name
  here=$NODE_NAME
  text=$(ha_says) || return 1
  while read -r sid node state; do
    if [[ $node != "$here" || $STOPPED == *" $state "* ]]; then
      gone+="$sid "
    elif [[ $LEFT_ALONE != *" $state "* && " $1 " != *" $sid "* ]]; then
      more+="$sid "
    fi
  done < <(services_in "$text")
  for sid in $1 $more; do
    [[ $gone == *" $sid "* ]] || printf '%s ' "$sid"
  done
}

# needs_watchdog - in words: what keeps HA's watchdog armed on any node of the cluster; nothing where HA is idle. A line of its agent:
# `lrm pve2 (active, watchdog active, Sat Nov 21 03:29:28 2026)`; older ones don't name the watchdog.
needs_watchdog() {
  local text sid _ state found='' status=0
  has_services || status=$?
  ((status != 1)) || return 0
  text=$(ha_says) || { printf '%s' "guests, and \`ha-manager status\` gives no answer" && return; }
  while read -r sid _ state; do
    [[ $STOPPED == *" $state "* ]] || found+=", $sid"
  done < <(services_in "$text")
  find_node_name
  found+=$(awk -v here="$NODE_NAME" '$1 == "lrm" && $2 != here && $3 == "(active," && !/watchdog standby/ { printf ", an active agent on %s", $2 }' <<<"$text")
  printf '%s' "${found#, }"
}

in_words() { # SERVICES
  local sid text=''
  for sid in $1; do
    text+=", $(called_guest "$sid")"
  done
  printf '%s' "${text#, }"
}

# leave_maintenance - status 1: HA doesn't take it, hasn't followed yet, or doesn't say.
leave_maintenance() {
  local node text
  find_away_note maintenance
  node=$AWAY_NOTED
  [[ -n $node ]] || return 0
  within "$ASK_SECONDS" ha-manager crm-command node-maintenance disable "$node" >/dev/null 2>&1 && text=$(ha_says) || return 1
  ! is_kept_free "$node" "$text" && note_away maintenance ''
}

# still_away SERVICES - of these, those that run on another node, or are on their way; not one that was stopped meanwhile, or taken out of HA.
# Status 1: no answer.
still_away() {
  local text sid node state here
  find_node_name
  here=$NODE_NAME
  text=$(ha_says) || return 1
  while read -r sid node state; do
    [[ " $1 " != *" $sid "* || $node == "$here" || $LEFT_ALONE == *" $state "* ]] || printf '%s ' "$sid"
  done < <(services_in "$text")
}

# await_services SECONDS - until those are back that were here. They come back also if nobody waits.
await_services() {
  local until=$((SECONDS + $1)) wanted missing
  find_away_note services
  wanted=$AWAY_NOTED
  [[ -n $wanted ]] || return 0
  told_from_now
  while :; do
    missing=$(still_away "$wanted") || missing="$wanted "
    [[ -n $missing ]] || break
    if ((SECONDS >= until)); then
      log "note: HA hasn't brought $(in_words "$missing") back yet; it goes on by itself (\`ha-manager status\`)"
      break
    fi
    tell_now_and_then "waiting for HA, which brings ${missing% } back"
    sleep 1
  done
  note_away services ''
}
