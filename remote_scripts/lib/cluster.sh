#!/usr/bin/env bash
# A node of a cluster restarts while the others keep their quorum, and while none of them restarts; any host while nothing is at work on it.
# Needs: files, lock, work, pve, ceph, maintenance, cluster/over
#
# Gives: cluster_says -> WHY_NOT, AT_WORK; await_cluster SECONDS; take_turn SECONDS; refuse_turn.
# Variables: QUORUM (keep | lose: may the others be without one meanwhile), HA_MODE (maintenance: HA is to move its guests away; keep), AWAY_SECONDS (for so long this node may be away), TURN_END (of lib/away.sh).
#
# In the cluster, TURN: KEY VALUE lines: node, since, until (seconds since 1970), noout (its disks that have it from this program). It is changed only under TURN_LOCK, a lock of Proxmox VE's own
# kind (PVE::Cluster, cfs_lock): a folder, which one node alone can make, and which the cluster's file system removes after 120 seconds when asked to.
# On this host, STATE/turn: that it has the turn. It is written first and removed last.
TURN=/etc/pve/priv/homelab-reboot
TURN_LOCK=/etc/pve/priv/lock/homelab-reboot

# cluster_says - sets WHY_NOT: why this node had better not restart now; empty: it may. AT_WORK: it is for what runs here. WHY_KIND: it is for the
# guests that HA is to move (guests), or for the watchdog of HA on the others (watchdog).
cluster_says() {
  WHY_NOT='' WHY_KIND='' ALONE=no
  work_says
  [[ -z $WHY_NOT ]] || return 0
  is_clustered || return 0
  votes_say || return 0
  [[ -n $WHY_NOT ]] || turn_says
  [[ -n $WHY_NOT ]] || ceph_says
  [[ -n $WHY_NOT || $HA_MODE == keep ]] || maintenance_says
}

# votes_say - status 1: there are no others. `pvecm status` ends with 2 where there is no quorum. A row is `NODEID VOTES NAME`, with a QDevice
# `NODEID VOTES FLAGS NAME`; ` (local)` follows.
votes_say() {
  local text line nodes='' quorate='' total='' quorum='' expected='' own='' served
  text=$(exec_within "$ASK_SECONDS" pvecm status 2>&1) || :
  while IFS= read -r line; do
    case $line in
      Nodes:*) read -r _ nodes _ <<<"$line" ;;
      Quorate:*) read -r _ quorate _ <<<"$line" ;;
      'Total votes:'*) read -r _ _ total _ <<<"$line" ;;
      Quorum:*) read -r _ quorum _ <<<"$line" ;;
      'Expected votes:'*) read -r _ _ expected _ <<<"$line" ;;
    esac
    [[ ! $line =~ \(local\)\ *$ ]] || read -r _ own _ <<<"$line"
  done <<<"$text"
  if [[ ! "$nodes $total $quorum $expected $own" =~ ^[0-9]+\ [0-9]+\ [0-9]+\ [0-9]+\ [0-9]+$ ]]; then
    WHY_NOT="\`pvecm status\` doesn't say which votes the cluster has: $(in_a_line "$text")"
  elif [[ $quorate != Yes ]]; then
    WHY_NOT="the cluster has no quorum: $total of $expected votes, and $quorum are needed"
  elif ((nodes == 1)); then
    ALONE=yes
    return 1
  elif ((total - own < quorum)); then
    text="without this node the cluster has $((total - own)) of $expected votes, and $quorum are needed"
    if [[ $QUORUM == keep ]]; then
      WHY_NOT=$text
    elif served=$(needs_watchdog) && [[ -n $served ]]; then
      WHY_KIND=watchdog WHY_NOT="$text; HA has $served, and its watchdog resets a node that loses its quorum, with all guests"
    fi
  fi
}

# turn_says - the turn of a node that is back is over once its time is; that of one which isn't back stays.
turn_says() {
  local text node until
  WHY_NOT=''
  text=$(exec_pve cat "$ROOT$TURN") || text=''
  find_turn_note node "$text"
  node=$TURN_NOTED
  [[ -n $node ]] || return 0
  find_node_name
  [[ $node != "$NODE_NAME" ]] || return 0
  find_turn_note until "$text"
  until=$TURN_NOTED
  [[ $until =~ ^[1-9][0-9]{0,11}$ ]] && (($(date +%s) >= until)) && is_member "$node" && return 0
  find_turn_note since "$text"
  WHY_NOT="$node restarts, since $TURN_NOTED ($TURN)"
}

# find_turn_note KEY TEXT - sets TURN_NOTED.
find_turn_note() {
  local key value
  TURN_NOTED=''
  while read -r key value; do
    [[ $key != "$1" ]] || { TURN_NOTED=$value && return; }
  done <<<"$2"
}

# is_own_turn - is what lies there this node's?
is_own_turn() { # PATH
  local text
  text=$(exec_pve cat "$ROOT$1") || return 1
  find_turn_note node "$text"
  find_node_name
  [[ $TURN_NOTED == "$NODE_NAME" ]]
}

is_member() { # NODE
  within "$ASK_SECONDS" pvecm nodes 2>/dev/null |
    awk -v node="$1" '$1 ~ /^[0-9]+$/ && ($NF == node || $NF == "(local)" && $(NF - 1) == node) { found = 1 } END { exit !found }'
}

# await_cluster SECONDS - until it can do without this node, which takes some time where another one has just come back. Status 1: WHY_NOT still.
await_cluster() {
  local until=$((SECONDS + $1))
  told_from_now
  while cluster_says && [[ -n $WHY_NOT ]]; do
    ((SECONDS < until)) || return 1
    tell_now_and_then "waiting to restart: $WHY_NOT"
    sleep 1
  done
}

refuse_turn() {
  [[ -z $AT_WORK ]] || die "this host restarted" "$WHY_NOT" \
    "a restart would cut it off: a backup that is half written, a guest that is on neither node, packages that are half configured" \
    "wait until it has ended, or end it (\`pvenode task list --source active\` shows the tasks of this host, \`ha-manager status\` what HA does), then run \`pulumi up\` again. Or reboot this host by hand when it suits you, then run it"
  [[ $WHY_KIND != guests ]] || refuse_guests
  [[ $WHY_KIND != watchdog ]] || die "this node of the cluster restarted" "$WHY_NOT" \
    "allowQuorumLoss permits that the others have no quorum for a while; it permits no reset of them" \
    "give the cluster a QDevice; or stop these guests (\`ha-manager set vm:103 --state stopped\`) or take them out of HA (\`ha-manager remove vm:103\`) until HA is idle (\`ha-manager status\`); then run \`pulumi up\` again"
  die "this node of the cluster restarted" "$WHY_NOT" \
    "the nodes of a cluster restart one at a time, while the others go on with a quorum" \
    "look at \`pvecm status\`, and at \`ceph -s\` where it is Ceph; when the others are well, run \`pulumi up\` again. Or reboot this host by hand when it suits you, then run it. Where the quorum can't be kept (two nodes without a QDevice), hosts.NAME.allowQuorumLoss permits it. If the node that restarts won't ever come back: rm $TURN"
}

# take_turn SECONDS - waits as long for it; status 1: not now, WHY_NOT says why. A host that is alone has no turns; but nothing may be at work.
take_turn() {
  local until=$((SECONDS + $1))
  told_from_now
  until try_turn; do
    if ((SECONDS >= until)); then
      end_turn 0 || :
      return 1
    fi
    tell_now_and_then "waiting to restart: $WHY_NOT"
    sleep 1
  done
}

try_turn() {
  cluster_says
  [[ -z $WHY_NOT ]] || return 1
  is_clustered || return 0
  if ! hold_turn_lock; then
    WHY_NOT="another node holds $TURN_LOCK, or nothing can be written in /etc/pve"
    return 1
  fi
  turn_says # again, now that nobody else can take it
  [[ -n $WHY_NOT ]] || note_turn || WHY_NOT=${WHY_NOT:-"$TURN, or /var/lib/homelab/turn, can't be written"}
  free_turn_lock
  [[ -n $WHY_NOT ]] || keep_disks || :
  [[ -z $WHY_NOT ]]
}

note_turn() {
  local now=$EPOCHSECONDS node noout
  find_node_name
  node=$NODE_NAME
  [[ -n $node ]] && need_dir "$STATE" &&
    write_atomically /var/lib/homelab/turn 0600 printf 'boot %s\n' "$(<"$ROOT/proc/sys/kernel/random/boot_id")" || return 1
  # Before anything is set: the turn itself ends where its `up` was killed.
  arm_turn_end || { WHY_NOT="the end of this node's turn can't be arranged on this host${OUTPUT:+: $OUTPUT}" && return 1; }
  [[ $ALONE == yes ]] || note_disks || return 1
  find_away_note noout
  noout=$AWAY_NOTED
  # No mode: the cluster's file system has its own. One name for all: nobody else is here, and what a run leaves that is killed is written over.
  printf 'node %s\nsince %(%F %T %Z)T\nuntil %s\n%s' "$node" "$now" "$((now + AWAY_SECONDS))" "${noout:+noout $noout$'\n'}" | pve tee "$ROOT$TURN.new" >/dev/null &&
    pve mv -fT "$ROOT$TURN.new" "$ROOT$TURN" && is_own_turn "$TURN"
}

# hold_turn_lock - one whose maker was killed stays until its time is over and somebody asks for its end, which is what `touch` does.
hold_turn_lock() {
  pve mkdir "$ROOT$TURN_LOCK" || { pve mkdir "$ROOT${TURN_LOCK%/*}" && pve mkdir "$ROOT$TURN_LOCK"; } && return 0
  pve touch -c -d @0 "$ROOT$TURN_LOCK" || :
  return 1
}

free_turn_lock() { pve rmdir "$ROOT$TURN_LOCK" || log "$TURN_LOCK stays for two minutes"; }
