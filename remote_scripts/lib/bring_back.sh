#!/usr/bin/env bash
# The guests that moved for a node's restart come back to it (lib/migrate.sh): those that this program has moved, that are where it put them, and that run.
# Needs: migrate
#
# Gives: bring_guests_back; guests_away_in_words.
#
# STATE/away: `vm:103 pve2 BOOT FIRST LAST`; the last two, in seconds since 1970, once one couldn't be brought back.
# One migration back takes so long at most; one that fails is tried again after so long (a storage takes its time after a boot), and given up after so long.
MOST_SECONDS=1800
AGAIN_SECONDS=30
GIVE_UP_SECONDS=900

# bring_guests_back - status 1: it isn't known of each yet what becomes of it.
bring_guests_back() {
  local entry notes=() status=0
  [[ ! -r $STATE/away ]] || mapfile -t notes < <(sed -n 's/^vm://p' "$STATE/away")
  for entry in "${notes[@]}"; do
    # shellcheck disable=SC2086 # several words
    bring_back $entry || status=1
  done
  return "$status"
}

# bring_back VMID NODE BOOT [FIRST LAST]
bring_back() {
  local here place
  here=$(node_name)
  [[ -n $here ]] && place=$(place_of "$1") || return 1
  case $place in
    "$here") revive "$1" "$3" ;;
    "$2") fetch "$@" ;;
    '') forget_guest "$1" "VM $1, which was moved to $2, isn't there any more" ;;
    *) forget_guest "$1" "VM $1, which was moved to $2, has moved on to $place: it stays there" ;;
  esac
}

# revive VMID BOOT - one that is on this node (again). If the node went off while it moved, it went off with it, and is locked.
revive() {
  local locked=no said
  ! of_now "/etc/pve/qemu-server/$1.conf" | grep -q '^lock: migrate$' || locked=yes
  if [[ $2 == "$(<"$ROOT/proc/sys/kernel/random/boot_id")" ]]; then
    [[ $locked == no ]] || return 1 # by a migration that is under way, or that somebody killed
  else
    said=$(within "$ASK_SECONDS" qm status "$1" 2>/dev/null) || return 1
    if [[ $said == *stopped* ]]; then
      log "note: VM $1 went off with this node while it was to move to another one: it is started again"
      [[ $locked == no ]] || within "$PVESH_SECONDS" qm unlock "$1" >/dev/null 2>&1 || return 1
      run_logged qm start "$1" || [[ $(within "$ASK_SECONDS" qm status "$1" 2>/dev/null) == *running* ]] || return 1
    fi
  fi
  forget_guest "$1" ''
}

# fetch VMID NODE BOOT [FIRST LAST] - one that is on NODE, where this program has moved it to.
fetch() {
  local here now first
  here=$(node_name) now=$(date +%s)
  first=${4:-$now}
  # A clock that was set back isn't waited for.
  [[ -z ${5:-} ]] || ((now - $5 >= AGAIN_SECONDS || now < $5)) || return 1
  migration_says "$2" "$1" || return 1
  if [[ $RUNS != 1 ]]; then
    forget_guest "$1" "VM $1 was shut down on $2: it stays there"
  elif [[ $STAYS != - ]]; then
    forget_guest "$1" "VM $1 stays on $2, since it has $STAYS there"
  elif [[ $ALLOWED != '*' && ",$ALLOWED," != *",$here,"* ]]; then
    forget_guest "$1" "VM $1 stays on $2: Proxmox VE doesn't allow it on $here any more"
  else
    log "VM $1 comes back from $2"
    live_migration "$MOST_SECONDS" pvesh create "/nodes/$2/qemu/$1/migrate" --target "$here" --online 1 || :
    if [[ $(place_of "$1") == "$here" ]]; then
      forget_guest "$1" ''
    elif ((now - first >= GIVE_UP_SECONDS)); then
      forget_guest "$1" "VM $1 stays on $2: it can't be brought back: $(in_a_line "$OUTPUT")"
    else
      log "note: VM $1 isn't back from $2 yet: $(in_a_line "$OUTPUT")"
      note_away "vm:$1" "$2 $3 $first $(date +%s)"
      return 1
    fi
  fi
}

forget_guest() { # VMID TEXT
  [[ -z $2 ]] || log "note: $2"
  note_away "vm:$1" ''
}

# guests_away_in_words - each that is noted, with what is to be done by hand.
guests_away_in_words() {
  local vmid node _
  [[ ! -r $STATE/away ]] || sed -n 's/^vm://p' "$STATE/away" | while read -r vmid node _; do
    printf '; VM %s is to come back from %s: there, qm migrate %s %s --online (if it is here and locked: qm unlock %s)' "$vmid" "$node" "$vmid" "$(node_name)" "$vmid"
  done
}
