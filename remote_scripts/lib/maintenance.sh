#!/usr/bin/env bash
# HA's maintenance mode for the time of a node's restart: HA moves the guests that it has here to other nodes, and brings them back afterwards.
# Needs: ha, away, progress, maintenance/services
#
# Gives: maintenance_says -> WHY_NOT; enter_maintenance SECONDS -> WHY_NOT; refuse_guests; leave_maintenance, await_services SECONDS.
#   Variables: WHY_KIND (of lib/cluster.sh).
#
# STATE/away: `maintenance NODE`, and `services vm:103 …`, those that ran here. A mode that another person has switched on is neither noted nor switched off.
# For so long HA may move nothing before it is given up.
STANDSTILL_SECONDS=300

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
  ! grep -qE '^(dev[0-9]+:|lxc\.(cgroup2\.devices\.allow|mount\.entry *[:=] */dev/))' <<<"$text" || return 0
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

# refuse_guests - one that was to be on another node isn't.
refuse_guests() {
  find_away_note maintenance
  die "HA's guests on other nodes before this one restarts (guestsAtReboot: maintenance)" "$WHY_NOT" \
    "this host is restarted once they are away; it isn't, and those that moved come back$([[ -z $AWAY_NOTED ]] || printf '. HA has its maintenance mode on still: the node goes on switching it off')" \
    "see to that guest (\`ha-manager status\`, and the log of its migration), or shut it down, or take it out of HA (\`ha-manager remove vm:103\`), or set guestsAtReboot: shutdown; then run \`pulumi up\` again"
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

# leave_maintenance - status 1: HA doesn't take it, hasn't followed yet, or doesn't say.
leave_maintenance() {
  local node text
  find_away_note maintenance
  node=$AWAY_NOTED
  [[ -n $node ]] || return 0
  within "$ASK_SECONDS" ha-manager crm-command node-maintenance disable "$node" >/dev/null 2>&1 && text=$(ha_says) || return 1
  ! is_kept_free "$node" "$text" && note_away maintenance ''
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
