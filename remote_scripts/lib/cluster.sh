#!/usr/bin/env bash
# A node of a cluster restarts while the others keep their quorum, and while none of them restarts.
# Needs: files, lock
#
# Gives: cluster_says -> WHY_NOT; take_turn SECONDS; has_turn; end_turn SECONDS.
# Variables: QUORUM (keep | lose: may the others be without one meanwhile), AWAY_SECONDS (for so long this node may be away).
#
# In the cluster, TURN: KEY VALUE lines: node, since, until (seconds since 1970). It is changed only under TURN_LOCK, a lock of Proxmox VE's own
# kind (PVE::Cluster, cfs_lock): a folder, which one node alone can make, and which the cluster's file system gives up after 120 seconds.
# On this host, STATE/turn: that it has the turn.
TURN=/etc/pve/priv/homelab-reboot
TURN_LOCK=/etc/pve/priv/lock/homelab-reboot

# is_clustered - also where the cluster's file system isn't there.
is_clustered() { [[ -e $ROOT/etc/pve/corosync.conf || -e $ROOT/etc/corosync/corosync.conf ]]; }

node_name() {
  local node
  node=$(readlink "$ROOT/etc/pve/local") || node=''
  printf '%s' "${node##*/}"
}

# cluster_says - sets WHY_NOT: why this node had better not restart now; empty: it may.
cluster_says() {
  WHY_NOT=''
  is_clustered || return 0
  votes_say
  [[ -n $WHY_NOT ]] || turn_says
  [[ -n $WHY_NOT ]] || ceph_says
}

# votes_say - `pvecm status` ends with 2 where there is no quorum. A row is `NODEID VOTES NAME`, with a QDevice `NODEID VOTES FLAGS NAME`; ` (local)` follows.
votes_say() {
  local text quorate total quorum expected own
  text=$(within "$ASK_SECONDS" pvecm status 2>&1) || :
  read -r quorate total quorum expected own < <(awk '
    /^Quorate:/ { quorate = $2 } /^Total votes:/ { total = $3 } /^Quorum:/ { quorum = $2 } /^Expected votes:/ { expected = $3 }
    /\(local\) *$/ { own = $2 }
    function or_none(value) { return value == "" ? "-" : value }
    END { print or_none(quorate), or_none(total), or_none(quorum), or_none(expected), or_none(own) }' <<<"$text") || :
  if [[ ! "$total $quorum $expected $own" =~ ^[0-9]+\ [0-9]+\ [0-9]+\ [0-9]+$ ]]; then
    WHY_NOT="\`pvecm status\` doesn't say which votes the cluster has: $(head -c 300 <<<"$text" | tr '\n' ' ')"
  elif ((expected == own)); then
    : # the only node
  elif [[ $quorate != Yes ]]; then
    WHY_NOT="the cluster has no quorum: $total of $expected votes, and $quorum are needed"
  elif ((total - own < quorum)) && [[ $QUORUM == keep ]]; then
    WHY_NOT="without this node the cluster has $((total - own)) of $expected votes, and $quorum are needed"
  fi
}

# turn_says - the turn of a node that is back is over once its time is; that of one which isn't back stays.
turn_says() {
  local node until
  WHY_NOT=''
  node=$(turn_note node)
  [[ -n $node && $node != "$(node_name)" ]] || return 0
  until=$(turn_note until)
  [[ $until =~ ^[0-9]{1,12}$ ]] && (($(date +%s) >= until)) && is_member "$node" && return 0
  WHY_NOT="$node restarts, since $(turn_note since) ($TURN)"
}

turn_note() { # KEY
  local key value
  [[ -r $ROOT$TURN ]] || return 0
  while read -r key value; do
    [[ $key != "$1" ]] || { printf '%s' "$value" && return; }
  done <"$ROOT$TURN"
}

is_member() { # NODE
  within "$ASK_SECONDS" pvecm nodes 2>/dev/null |
    awk -v node="$1" '$1 ~ /^[0-9]+$/ && ($NF == node || $NF == "(local)" && $(NF - 1) == node) { found = 1 } END { exit !found }'
}

# ceph_says - an OSD that is away for less than ten minutes (mon_osd_down_out_interval) isn't replaced, so that `noout` isn't needed.
ceph_says() {
  local node said osds=()
  [[ -e $ROOT/etc/pve/ceph.conf ]] && command -v ceph >/dev/null || return 0
  node=$(node_name)
  if ! said=$(within "$ASK_SECONDS" ceph mon ok-to-stop "$node" 2>&1); then
    WHY_NOT="Ceph can't do without this node's monitor now (\`ceph mon ok-to-stop $node\`): $(head -c 300 <<<"$said" | tr '\n' ' ')"
    return
  fi
  mapfile -t osds < <(within "$ASK_SECONDS" ceph osd ls-tree "$node" 2>/dev/null) # it fails where the node has none
  ((${#osds[@]} > 0)) || return 0
  said=$(within "$ASK_SECONDS" ceph osd ok-to-stop "${osds[@]}" 2>&1) ||
    WHY_NOT="Ceph can't do without this node's disks now (\`ceph osd ok-to-stop ${osds[*]}\`): $(head -c 300 <<<"$said" | tr '\n' ' ')"
}

# take_turn SECONDS - waits that long for the cluster; a node that has just come back needs some time to have its vote again.
take_turn() {
  local until=$((SECONDS + $1))
  is_clustered || return 0
  told_from_now
  until try_turn; do
    ((SECONDS < until)) || die "this node of the cluster restarted" "$WHY_NOT" \
      "of a cluster one node restarts at a time, while the others go on with a quorum" \
      "look at \`pvecm status\`; when the others are well, run \`pulumi up\` again. Hosts of one stack take turns by themselves with the same hosts.NAME.cluster; where a quorum can't be kept (two nodes without a QDevice), hosts.NAME.allowQuorumLoss allows it. A node that won't come back: rm $TURN"
    tell_now_and_then "waiting for the cluster: $WHY_NOT"
    sleep 1
  done
}

try_turn() {
  cluster_says
  [[ -z $WHY_NOT ]] || return 1
  if ! hold_turn_lock; then
    WHY_NOT="another node holds $TURN_LOCK, or nothing can be written in /etc/pve"
    return 1
  fi
  turn_says
  if [[ -z $WHY_NOT ]]; then
    note_turn || WHY_NOT="$TURN can't be written"
  fi
  free_turn_lock
  [[ -z $WHY_NOT ]]
}

note_turn() {
  local now node temporary=$ROOT$TURN.$$
  now=$(date +%s) node=$(node_name)
  [[ -n $node ]] || return 1
  need_dir "$STATE"
  printf 'boot %s\n' "$(<"$ROOT/proc/sys/kernel/random/boot_id")" | write_atomically /var/lib/homelab/turn 0600
  # No copy, no mode: the cluster's file system has its own.
  printf 'node %s\nsince %s\nuntil %s\n' "$node" "$(date -d "@$now" '+%F %T %Z')" "$((now + AWAY_SECONDS))" 2>/dev/null >"$temporary" &&
    mv -fT "$temporary" "$ROOT$TURN" 2>/dev/null && [[ $(turn_note node) == "$node" ]]
}

has_turn() { [[ -e $STATE/turn ]]; }

# end_turn SECONDS - what this host noted goes in any case once nothing in the cluster says that it restarts. Status 1: that couldn't be taken away in
# this time. (A node that has just started has no quorum for some seconds, and perhaps no /etc/pve.)
end_turn() {
  local until=$((SECONDS + $1))
  has_turn || return 0
  told_from_now
  until is_turn_over; do
    ((SECONDS < until)) || return 1
    tell_now_and_then "waiting for the cluster: its other nodes are to know that this one is back"
    sleep 1
  done
  remove_file /var/lib/homelab/turn
}

is_turn_over() {
  local status=0
  [[ -n $(node_name) ]] || return 1
  [[ $(turn_note node) == "$(node_name)" ]] || return 0
  hold_turn_lock || return 1
  [[ $(turn_note node) != "$(node_name)" ]] || rm -f "$ROOT$TURN" 2>/dev/null || status=1
  free_turn_lock
  return "$status"
}

# hold_turn_lock - for as long as its maker was killed in between it stays, until its time is over; asking for its end is what `touch` does.
hold_turn_lock() {
  mkdir "$ROOT${TURN_LOCK%/*}" 2>/dev/null || :
  mkdir "$ROOT$TURN_LOCK" 2>/dev/null && return 0
  touch -c -d @0 "$ROOT$TURN_LOCK" 2>/dev/null || :
  return 1
}

free_turn_lock() { rmdir "$ROOT$TURN_LOCK" 2>/dev/null || log "$TURN_LOCK stays for two minutes"; }
