#!/usr/bin/env bash
# Guests that move to other nodes while they run, for the time of a node's restart. What HA has it moves itself (lib/maintenance.sh); containers can't move while they run.
# Needs: lock, away, maintenance, targets
#
# Gives: what_can_move -> MOVING, STAYING, DOUBTED, UNSAID; move_guests SECONDS -> WHY_NOT; refuse_guests, refuse_unsaid; and for lib/bring_back.sh: place_of VMID; guest_says NODE VMID -> GUEST_LOCK, QMP; is_well NODE VMID; migration_says NODE VMID -> RUNS, ALLOWED, STAYS;
#   live_migration SECONDS COMMAND... -> OUTPUT. Takes, of lib/bring_back.sh: note_left. Variables: HA_MODE, ALONE, WHY_KIND (of lib/cluster.sh).
#
# STATE/away: `vm:103 pve2 BOOT`, noted before VM 103 is moved to pve2, in the boot of that id. lib/bring_back.sh brings it back.
# For an answer of Proxmox VE, in seconds: what is asked of another node goes over SSH, and a small processor takes long to start Perl.
PVESH_SECONDS=60

# api_says PATH PROGRAM ARGUMENT... - what Proxmox VE says of a path, options behind it, as $said of a program in Perl.
api_says() {
  # shellcheck disable=SC2016,SC2086 # Perl's variables; several words
  within "$PVESH_SECONDS" pvesh get $1 --output-format json 2>/dev/null |
    perl -MJSON::PP -e 'local $/; our $said = decode_json(<STDIN>); '"$2" -- "${@:3}" 2>/dev/null
}

# rooms_beside NODE SERVICES - a line `NODE BYTES` for each other node that is online: the memory that it has left. What runs there may take all that it is configured
# with (after a boot it has taken little yet), and HA may bring any of SERVICES to it, which it has on NODE.
rooms_beside() {
  # shellcheck disable=SC2016 # Perl's variables
  api_says /cluster/resources '
    my ($here, $services) = @ARGV;
    my %of_ha = map { s/^vm:/qemu\//r =~ s/^ct:/lxc\//r => 1 } split(" ", $services);
    my ($coming, %taken) = (0);
    for (grep { $_->{type} =~ /^(qemu|lxc)$/ && !$_->{template} } @$said) {
      $coming += $_->{maxmem} || 0 if $of_ha{"$_->{type}/$_->{vmid}"};
      $taken{$_->{node}} += $_->{maxmem} || 0 if ($_->{status} || "") eq "running";
    }
    for (grep { $_->{type} eq "node" } @$said) {
      next if ($_->{status} || "") ne "online" || $_->{node} eq $here || $_->{node} !~ /^[\w.-]+$/ || !$_->{maxmem} || !defined $_->{mem};
      my $used = $taken{$_->{node}} || 0;
      $used = $_->{mem} if $_->{mem} > $used;
      printf "%s %d\n", $_->{node}, $_->{maxmem} - $used - $coming;
    }' "$1" "$2" | sort
}

# running_vms NODE - a line `VMID BYTES QMP MACHINE` for each: the memory that it may take; what QEMU does (running, paused); the version of the machine that QEMU is for it, such as 10.1 (-: not said).
# The largest first, as it is the hardest to place.
running_vms() {
  # shellcheck disable=SC2016 # Perl's variables
  api_says "/nodes/$1/qemu --full 1" 'printf "%d %d %s %s\n", $_->{vmid}, $_->{maxmem}, $_->{qmpstatus} || "running", ($_->{"running-machine"} || "") =~ /-(\d+\.\d+)/ ? $1 : "-" for
    sort { $b->{maxmem} <=> $a->{maxmem} || $a->{vmid} <=> $b->{vmid} } grep { $_->{status} eq "running" && !$_->{template} } @$said'
}

# migration_says NODE VMID - of a VM on that node: RUNS (1 or 0); ALLOWED: the nodes that may take it, with commas (-: none; *: that isn't said, as of
# a running one before Proxmox VE 8.2; then the migration itself looks); STAYS: what keeps it there (-: nothing). Status 1: no answer, as of a
# locked one. A disk on a storage of the node alone could be copied, for hours: such a VM stays.
migration_says() {
  local text
  # shellcheck disable=SC2016 # Perl's variables
  text=$(api_says "/nodes/$1/qemu/$2/migrate" '
    die if !defined $said->{running} || ref $said->{local_disks} ne "ARRAY";
    my $mapped = ref $said->{"mapped-resource-info"} eq "HASH" ? $said->{"mapped-resource-info"} : {};
    my %mapped = map { $_ => 1 } @{ $said->{"mapped-resources"} || [] }, keys %$mapped;
    my @stays = sort map { $_->{volid} } @{ $said->{local_disks} };
    push @stays, sort grep { !$mapped{$_} } @{ $said->{local_resources} || [] };
    push @stays, sort grep { !($mapped->{$_} && $mapped->{$_}{"live-migration"}) } keys %mapped;
    my $allowed = $said->{allowed_nodes} ? join(",", @{ $said->{allowed_nodes} }) || "-" : "*";
    printf "%d %s %s\n", $said->{running} ? 1 : 0, $allowed, join(", ", @stays) || "-"') || return 1
  read -r RUNS ALLOWED STAYS <<<"$text" && [[ -n $STAYS ]]
}

# guest_says NODE VMID - of a VM on that node: GUEST_LOCK (-: none) and QMP: what QEMU does (running, paused, stopped …). Status 1: no answer.
guest_says() {
  local text
  # shellcheck disable=SC2016 # Perl's variables
  text=$(api_says "/nodes/$1/qemu/$2/status/current" 'printf "%s %s\n", $said->{lock} || "-", $said->{qmpstatus} || $said->{status} || die') || return 1
  read -r GUEST_LOCK QMP <<<"$text" && [[ -n $QMP ]]
}

# is_well NODE VMID - it has arrived there as it should. A migration moves the configuration first, then lets the guest go on, and takes its lock away last.
is_well() { [[ $(place_of "$2") == "$1" ]] && guest_says "$1" "$2" && [[ $GUEST_LOCK == - && $QMP == running ]]; }

# nodes_in_maintenance - those that HA keeps free, with commas around each: somebody empties them. Status 1: HA has services, and doesn't answer.
nodes_in_maintenance() {
  local text line found=, status=0
  if ! text=$(ha_says); then
    has_services || status=$?
    ((status == 1)) || return 1
  fi
  while IFS= read -r line; do [[ ! $line =~ ^lrm\ ([^\ ]+)\ \(maintenance\ mode ]] || found+="${BASH_REMATCH[1]},"; done <<<"$text"
  printf '%s' "$found"
}

# place_of VMID - the node that has it: its file is on one alone. Status 1: that can't be told. (Twice: it may go from one that isn't looked at yet
# to one that is already.)
place_of() {
  local found try
  for try in 1 2; do
    found=$(exec_within "$ASK_SECONDS" find "$ROOT/etc/pve/nodes/" -mindepth 3 -maxdepth 3 -path "*/qemu-server/$1.conf" 2>/dev/null) || return 1
    [[ -z $found ]] || break
  done
  found=${found%/qemu-server/*}
  printf '%s' "${found##*/}"
}

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

why_unsaid() { in_a_line "$(within "$PVESH_SECONDS" pvesh get "$1" 2>&1 >/dev/null || :)"; } # PATH - it is asked once more

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
