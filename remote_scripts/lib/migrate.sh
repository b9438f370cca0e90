#!/usr/bin/env bash
# Guests that move to other nodes while they run, for the time of a node's restart. What HA has it moves itself (lib/maintenance.sh); containers can't move while they run.
# Needs: lock, away, left, maintenance/services, migrate/asked, targets
#
# Gives: what_can_move -> MOVING, STAYING, DOUBTED, UNSAID; move_guests SECONDS -> WHY_NOT; refuse_guests, refuse_unsaid; live_migration SECONDS COMMAND... -> OUTPUT.
#   Variables: HA_MODE, ALONE, WHY_KIND (of lib/cluster.sh).
#
# STATE/away: `vm:103 pve2 BOOT`, noted before VM 103 is moved to pve2, in the boot of that id. lib/bring_back.sh brings it back.

# what_can_move - sets MOVING: `VMID:NODE` of each VM that is to move, a blank behind each; STAYING: a line `VMID WHY` of each that can't; DOUBTED:
# a line `VMID to NODE, which …` of each that moves to a node of which something can't be told. Status 1: none of it can be told, and UNSAID says why. Not to a node that has refused the guest (REFUSED: `VMID:NODE `, each).
REFUSED=''
what_can_move() {
  local here rooms vms services busy of_ha='' vmid need qmp machine not entry status=0
  MOVING='' STAYING='' DOUBTED='' UNSAID='' SAID_BY=()
  [[ $HA_MODE == migrate ]] && is_clustered || return 0
  find_node_name
  here=$NODE_NAME
  UNSAID="HA doesn't say what it has (\`ha-manager status\`)"
  has_services || status=$?
  ((status < 2)) && services=$(services_here) && busy=$(nodes_in_maintenance) || return 1
  ((status > 0)) || of_ha=$(exec_pve grep -E '^(vm|ct):' "$ROOT$HA_CONFIG") || return 1
  UNSAID="Proxmox VE doesn't say what the nodes have (\`pvesh get /cluster/resources\`)"
  [[ -n $here ]] && rooms=$(rooms_beside "$here" "$services") || return 1
  UNSAID="Proxmox VE doesn't say which VMs run here (\`pvesh get /cluster/resources\`)"
  vms=$(running_vms "$here") || return 1
  while read -r -u 3 vmid need qmp machine; do
    [[ -n $vmid ]] || continue
    [[ ! $'\n'$of_ha$'\n' =~ $'\n'"vm:"\ *"$vmid"\ *$'\n' ]] || continue
    if ! migration_says "$here" "$vmid"; then
      UNSAID="Proxmox VE doesn't say whether VM $vmid can move (\`pvesh get /nodes/$here/qemu/$vmid/migrate\`): $(why_unsaid "/nodes/$here/qemu/$vmid/migrate")"
      return 1
    fi
    not=$busy
    for entry in $REFUSED; do [[ $entry != "$vmid:"* ]] || not+=",${entry#*:},"; done
    if [[ $RUNS != 1 ]]; then
      : # it has gone off meanwhile
    elif [[ $STAYS != - ]]; then
      STAYING+="$vmid stays with $STAYS"$'\n'
    elif [[ $qmp != running ]]; then
      STAYING+="$vmid is $qmp, and stays"$'\n'
    elif ! find_target "$vmid" "$need" "$machine" "$rooms" "$not"; then
      UNSAID="it can't be told whether VM $vmid can move to $SILENT, which doesn't answer (\`pvesh get /nodes/$SILENT/version\`): $(why_unsaid "/nodes/$SILENT/version")"
      return 1
    elif [[ -z $NODE ]]; then
      STAYING+="$vmid finds no other node with $((need >> 20)) MiB left${LACKING:+ that it could run on$LACKING}"$'\n'
    else
      MOVING+="$vmid:$NODE "
      [[ -z $DOUBT ]] || DOUBTED+="$vmid to $NODE, which $DOUBT"$'\n'
      rooms=$(rooms_without "$rooms" "$NODE" "$need")
    fi
  done 3<<<"$vms"
  UNSAID=''
}

# move_guests SECONDS - one after another. Status 1: one that was to move hasn't, and WHY_NOT says why. The others come back with the end of the turn.
move_guests() {
  local until=$((SECONDS + $1)) before=$MOVING entry vmid node why first
  WHY_KIND=guests
  what_can_move || { WHY_KIND=unsaid WHY_NOT=$UNSAID && return 1; }
  for entry in $before; do
    vmid=${entry%:*}
    why=$(sed -n "s/^$vmid //p" <<<"$STAYING")
    [[ -z $why ]] || { WHY_NOT="VM $vmid was to move to another node, and can't any more: it $why" && return 1; }
  done
  for entry in $MOVING; do
    vmid=${entry%:*} node=${entry#*:} first=''
    until move_guest "$vmid" "$node" $((until - SECONDS)); do
      first=${first:-$WHY_NOT}
      # Where this node has it still as it was, another one may take it.
      find_node_name
      is_well "$NODE_NAME" "$vmid" && ((SECONDS < until)) || return 1
      REFUSED+="$vmid:$node "
      what_can_move && node=$(tr ' ' '\n' <<<"$MOVING" | sed -n "s/^$vmid://p") || node=''
      [[ -n $node ]] || { WHY_NOT=$first && return 1; }
      log "note: $WHY_NOT"
    done
  done
}

move_guest() { # VMID NODE SECONDS
  # It is here: what an earlier restart left is over, also where it goes to the same node again.
  if ! note_left "$1" '' || ! note_away "vm:$1" "$2 $(<"$ROOT/proc/sys/kernel/random/boot_id")"; then
    WHY_NOT="that VM $1 moves to another node can't be noted on this host"
    return 1
  fi
  log "VM $1 moves to $2"
  live_migration "$3" qm migrate "$1" "$2" --online 1 && is_well "$2" "$1" && return 0
  WHY_NOT="VM $1 hasn't moved to $2, or not as it should: $(in_a_line "$OUTPUT")"
  return 1
}

# live_migration SECONDS COMMAND... - it has the host's lock until it ends, also where this script is killed meanwhile. It isn't killed at once when
# its time is up: it takes back what it has begun, and frees the guest.
live_migration() {
  local status=0 file=$RUN/migration
  OUTPUT="no time is left for it"
  (($1 > 0)) || return 1
  (: >"$file") 2>/dev/null || file=/dev/null
  open_step_log "${*:2}"
  DOING="a live migration" watched "$file" timeout -k 120 "$1" env --default-signal=TERM,HUP,PIPE "${@:2}" || status=$?
  OUTPUT=$(tail -n 3 "$file" 2>/dev/null | tail -c 300) || OUTPUT=''
  ((status != 124 && status != 137)) || OUTPUT="given up after $1 s"
  [[ $file == /dev/null ]] || rm -f "$file"
  return "$status"
}

# refuse_unsaid - it isn't known what would become of a guest.
refuse_unsaid() {
  die "guests on other nodes before this one restarts (guestsAtReboot: $HA_MODE)" "$WHY_NOT" \
    "a guest that might have moved isn't shut down unasked; this host isn't restarted" \
    "run that command on this host: what it says has to be mended (a lock of a guest: wait until what holds it has ended), or set guestsAtReboot: shutdown; then run \`pulumi up\` again"
}

# refuse_guests - one that was to be on another node isn't.
refuse_guests() {
  find_away_note maintenance
  die "guests on other nodes before this one restarts (guestsAtReboot: $HA_MODE)" "$WHY_NOT" \
    "this host is restarted once they are away; it isn't, and those that moved come back$([[ -z $AWAY_NOTED ]] || printf '. HA has its maintenance mode on still: the node goes on switching it off')" \
    "see to that guest (the log of its migration says more), or shut it down, or take one of HA out of HA (\`ha-manager remove vm:103\`), or set guestsAtReboot: shutdown; then run \`pulumi up\` again"
}
