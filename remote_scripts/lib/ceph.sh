#!/usr/bin/env bash
# Ceph on a node that restarts: whether it can do without the node's monitor and disks, and that it doesn't replace these disks meanwhile.
# Needs: away
#
# Gives: ceph_says -> WHY_NOT; own_disks; note_disks -> WHY_NOT, keep_disks -> WHY_NOT, let_disks_go; allow_replacement DISK....
#
# `noout` is set for this node's disks alone (`ceph osd add-noout`), not for the cluster: the other nodes' are replaced as ever. What has it
# already keeps it. STATE/away, `noout`: the disks that have it from here.

# own_disks - the ids of the OSDs that run here, a line each.
own_disks() {
  local path id
  for path in "$ROOT"/var/lib/ceph/osd/ceph-*/whoami; do
    [[ -r $path ]] || continue
    id=$(<"$path")
    [[ ! $id =~ ^[0-9]+$ ]] || printf '%s\n' "$id"
  done
}

# ceph_says - for the monitors and disks that run here.
ceph_says() {
  local said path monitors=() osds=()
  for path in "$ROOT"/var/lib/ceph/mon/ceph-*/; do
    [[ ! -d $path ]] || { path=${path%/} && monitors+=("${path##*/ceph-}"); }
  done
  mapfile -t osds < <(own_disks)
  if ((${#monitors[@]} > 0)) && ! said=$(exec_within "$ASK_SECONDS" ceph mon ok-to-stop "${monitors[@]}" 2>&1); then
    WHY_NOT="Ceph can't do without this node's monitor now (\`ceph mon ok-to-stop ${monitors[*]}\`): $(in_a_line "$said")"
  elif ((${#osds[@]} > 0)) && ! said=$(exec_within "$ASK_SECONDS" ceph osd ok-to-stop "${osds[@]}" 2>&1); then
    WHY_NOT="Ceph can't do without this node's disks now (\`ceph osd ok-to-stop ${osds[*]}\`): $(in_a_line "$said")"
  fi
}

# without_noout - the disks of this node that would be replaced. A line of `ceph osd dump` is `osd.0 up   in  weight 1 … exists,up,noout UUID`,
# and `flags noout,sortbitwise,…` is for all disks. Status 1: no answer.
without_noout() {
  local text
  text=$(exec_within "$ASK_SECONDS" ceph osd dump 2>/dev/null) && grep -q '^flags ' <<<"$text" || return 1
  ! grep -qE '^flags (.*,)?noout(,.*)?$' <<<"$text" || return 0
  own_disks | while read -r id; do
    ! grep -E "^osd\.$id " <<<"$text" | grep -qvE '[ ,]noout[ ,]' || printf '%s ' "$id"
  done
}

# note_disks - what `keep_disks` is going to set. One that an earlier run noted stays noted.
note_disks() {
  local before disks all
  [[ -n $(own_disks) ]] || return 0
  if ! disks=$(without_noout); then
    WHY_NOT="Ceph doesn't say which disks it would replace (\`ceph osd dump\` gave no answer)"
    return 1
  fi
  find_away_note noout
  before=$AWAY_NOTED
  [[ -n $disks$before ]] || return 0
  # shellcheck disable=SC2086 # several ids each
  all=$(printf '%s\n' $before $disks | sort -nu | paste -sd ' ')
  if ! note_away noout "$all"; then
    WHY_NOT="what is set for this restart (Ceph's noout) can't be noted on this host"
    return 1
  fi
}

keep_disks() {
  local said disks=()
  find_away_note noout
  read -r -a disks <<<"$AWAY_NOTED" || :
  ((${#disks[@]} > 0)) || return 0
  said=$(exec_within "$ASK_SECONDS" ceph osd add-noout "${disks[@]}" 2>&1) ||
    WHY_NOT="Ceph would replace this node's disks (\`ceph osd add-noout ${disks[*]}\`): $(in_a_line "$said")"
}

# let_disks_go - status 1: Ceph doesn't answer.
let_disks_go() {
  local disks=()
  find_away_note noout
  read -r -a disks <<<"$AWAY_NOTED" || :
  ((${#disks[@]} > 0)) || return 0
  allow_replacement "${disks[@]}" && note_away noout ''
}

allow_replacement() { # DISK...
  within "$ASK_SECONDS" ceph osd rm-noout "$@" >/dev/null 2>&1
}
