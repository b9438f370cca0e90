#!/usr/bin/env bash
# The guests that moved for a node's restart come back to it (lib/migrate.sh): those that this program has moved, that are where it put them, and that run.
# Needs: left, maintenance, migrate
#
# Gives: bring_guests_back; guests_away_in_words.
#
# STATE/away: `vm:103 pve2 BOOT FAILED UNKNOWN LAST`, the last three once it isn't back: how often it couldn't be brought back, and how often that couldn't be told; the last time, in
# seconds since 1970. One that is given up goes to lib/left.sh's list.
# One migration back takes so long at most. The next try comes after so many seconds (a storage takes its time after a boot). After so many that failed it is given up, and after so many
# without an answer (a node that is down, a backup of the guest there), which is half a day at least.
MOST_SECONDS=1800
AGAIN_SECONDS=30
MOST_FAILED=15
MOST_UNKNOWN=1440

# bring_guests_back - status 1: it isn't known of each yet what becomes of it.
bring_guests_back() {
  local entry notes=() status=0
  forget_left || status=1
  [[ ! -r $STATE/away ]] || mapfile -t notes < <(sed -n 's/^vm://p' "$STATE/away")
  ((${#notes[@]} == 0)) || look_at_pve || : # this node's name, for all of them
  for entry in "${notes[@]}"; do
    # shellcheck disable=SC2086 # several words
    bring_back $entry || status=1
  done
  return "$status"
}

# bring_back VMID NODE BOOT [FAILED UNKNOWN LAST]
bring_back() {
  local here place now
  find_node_name
  here=$NODE_NAME now=$(date +%s)
  [[ -n $here ]] && place=$(place_of "$1") || return 1
  # A clock that was set back isn't waited for.
  [[ -z ${6:-} ]] || ((now - $6 >= AGAIN_SECONDS || now < $6)) || return 1
  case $place in
    "$here") revive "$@" ;;
    "$2") fetch "$@" ;;
    '') forget_guest "$1" "VM $1, which was moved to $2, isn't there any more" ;;
    *) forget_guest "$1" "VM $1, which was moved to $2, has moved on to $place: it stays there" ;;
  esac
}

# revive VMID NODE BOOT … - one that is on this node (again). One whose node went off while it moved went off with it, and is locked. One that is off and not locked was
# shut down by somebody, or Proxmox VE starts it.
revive() {
  local here off=no
  find_node_name
  here=$NODE_NAME
  if ! of_now "/etc/pve/qemu-server/$1.conf" | grep -q '^lock: migrate$'; then
    forget_guest "$1" ''
    return
  fi
  [[ $3 == "$(<"$ROOT/proc/sys/kernel/random/boot_id")" || $(exec_within "$ASK_SECONDS" qm status "$1" 2>/dev/null) != *stopped* ]] || off=yes
  if [[ $off == no ]]; then
    if let_go_on "$here" "$@"; then
      forget_guest "$1" ''
    else
      put_off failed "$(by_hand "$1" "$here")" "$@"
    fi
  elif no_migration "$here" "$1"; then
    log "note: VM $1 went off with this node while it was to move to another one: it is started again"
    # Its lock goes last, so that it is found again.
    if { run_logged qm start "$1" --skiplock 1 || [[ $(exec_within "$ASK_SECONDS" qm status "$1" 2>/dev/null) == *running* ]]; } && within "$PVESH_SECONDS" qm unlock "$1" >/dev/null 2>&1; then
      forget_guest "$1" ''
    else
      put_off failed "it went off while it moved, and doesn't start: there, qm unlock $1 && qm start $1" "$@"
    fi
  else
    put_off failed "$(by_hand "$1" "$here")" "$@"
  fi
}

by_hand() { printf 'it is on %s, and locked by a migration that was cut short: once none runs any more, there, qm unlock %s && qm resume %s' "$2" "$1" "$1"; } # VMID NODE

# let_go_on PLACE VMID NODE … - one that a migration between this node and NODE has left locked, and perhaps paused, where its configuration is: it goes on there, if no
# migration of it runs on either node. Its lock goes last, so that it is found again.
let_go_on() {
  local one
  guest_says "$1" "$2" && [[ $GUEST_LOCK == migrate && $QMP != stopped ]] || return 1
  find_node_name
  for one in "$NODE_NAME" "$3"; do
    no_migration "$one" "$2" || return 1
  done
  log "note: VM $2 goes on on $1: its migration was cut short"
  [[ $QMP == running ]] || within "$PVESH_SECONDS" pvesh create "/nodes/$1/qemu/$2/status/resume" --skiplock 1 >/dev/null 2>&1 || return 1
  within "$PVESH_SECONDS" pvesh set "/nodes/$1/qemu/$2/config" --delete lock --skiplock 1 >/dev/null 2>&1 && is_well "$1" "$2"
}

# no_migration NODE VMID - none of it runs there. (What has ended stays in this list for a while.)
no_migration() {
  # shellcheck disable=SC2016 # Perl's variables
  api_says "/nodes/$1/tasks --source active" 'exit 1 if ref $said ne "ARRAY" || grep { $_->{type} eq "qmigrate" && $_->{id} eq $ARGV[0] && !$_->{endtime} } @$said' "$2"
}

# fetch VMID NODE BOOT … - one that is on NODE, where this program has moved it to.
fetch() {
  local here
  find_node_name
  here=$NODE_NAME
  if ! guest_says "$2" "$1"; then
    put_off unknown "$2 doesn't say how it is" "$@"
  elif [[ $GUEST_LOCK == migrate ]] && ! let_go_on "$2" "$@"; then
    put_off failed "$(by_hand "$1" "$2")" "$@"
  elif ! migration_says "$2" "$1"; then
    put_off unknown "Proxmox VE doesn't say whether it can move$([[ $GUEST_LOCK == - ]] || printf ' (it is locked: %s)' "$GUEST_LOCK")" "$@"
  elif [[ $RUNS != 1 ]]; then
    forget_guest "$1" "VM $1 was shut down on $2: it stays there"
  elif [[ $STAYS != - ]]; then
    forget_guest "$1" "VM $1 stays on $2, since it has $STAYS there"
  elif [[ $ALLOWED != '*' && ",$ALLOWED," != *",$here,"* ]]; then
    forget_guest "$1" "VM $1 stays on $2: Proxmox VE doesn't allow it on $here any more"
  else
    log "VM $1 comes back from $2"
    live_migration "$MOST_SECONDS" pvesh create "/nodes/$2/qemu/$1/migrate" --target "$here" --online 1 || :
    if is_well "$here" "$1"; then
      forget_guest "$1" ''
    elif [[ $(place_of "$1") == "$here" ]]; then
      revive "$1" "$2" "$3" "${@:4}"
    else
      put_off failed "it can't be brought back: $(in_a_line "$OUTPUT")" "$@"
    fi
  fi
}

# put_off failed|unknown WHY VMID NODE BOOT [FAILED UNKNOWN LAST] - status 1: it is tried again; 0: that is over, and the guest stays where and as it is.
put_off() {
  local failed=${6:-0} unknown=${7:-0}
  if [[ $1 == failed ]]; then failed=$((failed + 1)); else unknown=$((unknown + 1)); fi
  if ((failed >= MOST_FAILED || unknown >= MOST_UNKNOWN)); then
    find_away_note leaving
    [[ -n $AWAY_NOTED ]] || note_left "$3" "$4 $2" || return 1
    forget_guest "$3" "VM $3, which was moved to $4, is given up: $2"
    return
  fi
  log "note: VM $3 isn't back from $4 yet: $2"
  note_away "vm:$3" "$4 $5 $failed $unknown $(date +%s)" || :
  return 1
}

forget_guest() { # VMID TEXT
  [[ -z $2 ]] || log "note: $2"
  note_away "vm:$1" ''
}

# guests_away_in_words - each that is noted, with what is to be done by hand.
guests_away_in_words() {
  local vmid node _
  [[ -r $STATE/away ]] || return 0
  find_node_name
  sed -n 's/^vm://p' "$STATE/away" | while read -r vmid node _; do
    printf '; VM %s is to come back from %s: there, qm migrate %s %s --online (where it is locked by a migration that has ended, first qm unlock %s and qm resume %s)' \
      "$vmid" "$node" "$vmid" "$NODE_NAME" "$vmid" "$vmid"
  done
}
