#!/usr/bin/env bash
# The cluster's file system on a node, and the node in it.
# Needs: common
#
# Gives: pve COMMAND...; is_clustered; node_name.

# pve COMMAND... - on the cluster's file system, which hangs where its daemon does.
pve() { within "$ASK_SECONDS" "$@" 2>/dev/null; }

# is_clustered - where the cluster's file system isn't there, corosync's own copy says it. (A host that has left its cluster may keep that copy.)
is_clustered() {
  pve test -e "$ROOT/etc/pve/corosync.conf" || { ! pve test -L "$ROOT/etc/pve/local" && [[ -e $ROOT/etc/corosync/corosync.conf ]]; }
}

node_name() {
  local node
  node=$(pve readlink "$ROOT/etc/pve/local") || node=''
  printf '%s' "${node##*/}"
}
