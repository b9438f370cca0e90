#!/usr/bin/env bash
# The cluster's file system on a node, and the node in it.
# Needs: common
#
# Gives: pve COMMAND..., exec_pve; look_at_pve [EXPRESSION...] -> LISTED, NODE_NAME; is_listed NAME TYPES, has_cluster_listed; is_clustered; find_node_name -> NODE_NAME.
HA_CONFIG=/etc/pve/ha/resources.cfg
# The node's name, once it was seen: it stays the same while a script runs.
NODE_NAME=''

# pve COMMAND... - on the cluster's file system, which hangs where its daemon does. exec_pve: in $(...), as exec_within is to within.
pve() (exec_pve "$@")
exec_pve() { exec_within "$ASK_SECONDS" "$@" 2>/dev/null; }

# look_at_pve [EXPRESSION...] - by one program, since each needs an end: sets LISTED, a line `NAME TYPES TARGET` for each that is there of local (a link),
# corosync.conf and resources.cfg (TYPES: its own, and, of a link, that of its target). EXPRESSION: find's, what else is asked of them. Status 1: not all are
# there; above: no answer.
look_at_pve() {
  local status=0
  LISTED=$(exec_pve find "$ROOT/etc/pve/local" "$ROOT/etc/pve/corosync.conf" "$ROOT$HA_CONFIG" -maxdepth 0 -printf '%f %y%Y %l\n' "$@") || status=$?
  LISTED=$'\n'$LISTED
  [[ ! $LISTED =~ $'\n'"local l"[^\ ]\ ([^$'\n']+) ]] || NODE_NAME=${BASH_REMATCH[1]##*/}
  return "$status"
}

# is_listed NAME TYPES - after that look. TYPES is a pattern.
# shellcheck disable=SC2053
is_listed() { [[ $LISTED == *$'\n'"$1 "$2\ * ]]; }

# is_clustered - where the cluster's file system isn't there, corosync's own copy says it. (A host that has left its cluster may keep that copy.)
is_clustered() {
  look_at_pve || : # what doesn't answer isn't there
  has_cluster_listed
}

has_cluster_listed() { is_listed corosync.conf '?[fd]' || { ! is_listed local 'l?' && [[ -e $ROOT/etc/corosync/corosync.conf ]]; }; }

find_node_name() { [[ -n $NODE_NAME ]] || look_at_pve || :; }
