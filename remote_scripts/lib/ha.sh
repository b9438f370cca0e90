#!/usr/bin/env bash
# What Proxmox VE's HA has, and what it does with it: read from `ha-manager status`, here and nowhere else.
# Needs: pve
#
# Gives: has_services; ha_says; services_in TEXT.

# has_services - status 1: HA has none; 2: /etc/pve doesn't say; 3: it isn't mounted, on a node of a cluster. Where it isn't mounted on a host that is
# in no cluster, HA does nothing.
has_services() {
  local status=0
  look_at_pve -name resources.cfg -exec grep -csE '^(vm|ct):' {} \; || status=$?
  ((status <= 1)) || return 2
  # Behind its name, the number of its services; none: it can't be read.
  if is_listed resources.cfg '?[fd]'; then
    [[ $LISTED =~ $'\n'"resources.cfg "[^$'\n']+$'\n'([0-9]+)$ ]] || return 2
    ((BASH_REMATCH[1] == 0)) || return 0
  elif ! is_listed local 'l?' && has_cluster_listed; then
    return 3
  fi
  return 1
}

# ha_says - what `ha-manager status` says. Status 1: it is no answer, but perhaps why there is none.
ha_says() {
  local text status=0
  text=$(exec_within "$ASK_SECONDS" ha-manager status 2>&1) || status=1
  printf '%s\n' "$text"
  ((status == 0)) && [[ $text == *quorum* ]]
}

# services_in TEXT - of such an answer, a line for each service: `vm:200 pve2 started`, from `service vm:200 (pve2, started)`. A state may have
# several words (clearing error flag); a service whose guest is gone is on the node `---`.
services_in() {
  local line
  while IFS= read -r line; do
    [[ ! $line =~ ^service\ ([^\ ]+)\ \(([^,]+),\ ([^\)]+)\) ]] || printf '%s %s %s\n' "${BASH_REMATCH[@]:1}"
  done <<<"$1"
}
