#!/usr/bin/env bash
# The guests that moved for a node's restart and that were given up: they stay where they are until somebody sees to them.
# Needs: files, migrate/asked
#
# Gives: note_left VMID TEXT; forget_left; give_left_up.
#
# STATE/left: `105 pve2 WHY` for each, until it isn't there any more. Not on a host from which all of this program was taken away meanwhile (STATE/away: `leaving yes`).

note_left() { # VMID TEXT - none: it is no longer left anywhere
  local text='' TEXT
  [[ -n $2 || -e $STATE/left ]] || return 0
  [[ ! -r $STATE/left ]] || text=$(sed "/^$1 /d" "$STATE/left") || return 1
  masked "$2"
  [[ -z $TEXT ]] || text="${text:+$text$'\n'}$1 ${TEXT//[[:cntrl:]]/ }"
  if [[ -n $text ]]; then
    write_atomically /var/lib/homelab/left 0600 printf '%s\n' "$text"
  else
    remove_file /var/lib/homelab/left
  fi
}

# forget_left - of those that were given up, each that somebody has taken away from where it was left.
forget_left() {
  local vmid node place
  [[ -r $STATE/left ]] || return 0
  while read -r -u 3 vmid node _; do
    place=$(place_of "$vmid") || return 1
    [[ $place == "$node" ]] || note_left "$vmid" '' || return 1
  done 3< <(cat "$STATE/left")
}

# give_left_up - for `destroy`, after which nothing here says it any more: each that is still where it was left is said now.
give_left_up() {
  local vmid node why place
  if [[ -r $STATE/left ]]; then
    find_node_name
    while read -r -u 3 vmid node why; do
      [[ $vmid =~ ^[1-9][0-9]*$ && -n $why ]] || continue
      place=$(place_of "$vmid") || place=$node
      [[ $place != "$node" ]] ||
        log "note: VM $vmid is still on $node, where it was moved for a restart of this node ($why): there, qm migrate $vmid $NODE_NAME --online 1"
    done 3< <(cat "$STATE/left")
  fi
  remove_file /var/lib/homelab/left
}
