#!/usr/bin/env bash
# What Proxmox VE's HA has, and what it does with it: read from `ha-manager status`, here and nowhere else.
# Needs: pve
#
# Gives: has_services; ha_says; services_in TEXT.
HA_CONFIG=/etc/pve/ha/resources.cfg

# has_services - status 1: HA has none; 2: /etc/pve doesn't say; 3: it isn't mounted, on a node of a cluster. Where it isn't mounted on a host that is
# in no cluster, HA does nothing.
has_services() {
  local status=0
  pve grep -qsE '^(vm|ct):' "$ROOT$HA_CONFIG" || status=$?
  ((status == 2)) || return $((status > 1 ? 2 : status)) # 2: no such file, or it can't be read; above: no answer
  status=0
  pve test -L "$ROOT/etc/pve/local" || status=$?
  if ((status == 0)); then
    pve test -e "$ROOT$HA_CONFIG" || status=$?
  elif ((status == 1)) && is_clustered; then
    return 3
  fi
  return $((status == 1 ? 1 : 2))
}

# ha_says - what `ha-manager status` says. Status 1: it is no answer, but perhaps why there is none.
ha_says() {
  local text status=0
  text=$(within "$ASK_SECONDS" ha-manager status 2>&1) || status=1
  printf '%s\n' "$text"
  ((status == 0)) && [[ $text == *quorum* ]]
}

# services_in TEXT - of such an answer, a line for each service: `vm:200 pve2 started`, from `service vm:200 (pve2, started)`. A state may have
# several words (clearing error flag); a service whose guest is gone is on the node `---`.
services_in() { sed -nE 's/^service ([^ ]+) \(([^,]+), ([^)]+)\).*$/\1 \2 \3/p' <<<"$1"; }
