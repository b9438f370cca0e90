#!/usr/bin/env bash
# The guests that HA has on this node: which it would move, which are left, and which are away; and what keeps its watchdog armed.
# Needs: ha
#
# Gives: services_here; left_behind SERVICES; still_away SERVICES; needs_watchdog; in_words SERVICES, called_guest SID.
#
# A service that is in none of these states has to leave first.
LEFT_ALONE=' stopped disabled ignored ignore error freeze '
# Of a guest that doesn't run, by HA's will.
STOPPED=' stopped disabled ignored ignore '

# services_here - those that HA has on this node and would move, a blank behind each. Status 1: no answer.
services_here() {
  local text sid node state here status=0
  has_services || status=$?
  ((status == 0)) || return $((status - 1))
  find_node_name
  here=$NODE_NAME
  text=$(ha_says) || return 1
  while read -r sid node state; do
    [[ $node != "$here" || $LEFT_ALONE == *" $state "* ]] || printf '%s ' "$sid"
  done < <(services_in "$text")
}

called_guest() { # SID
  case $1 in
    vm:*) printf 'VM %s' "${1#*:}" ;;
    *) printf 'container %s' "${1#*:}" ;;
  esac
}

# left_behind SERVICES - of these, each that is on no other node and hasn't been stopped: HA may have given it up (error), or lost it. And what
# has come here meanwhile. Status 1: no answer.
left_behind() {
  local text sid node state here gone=' ' more=''
  find_node_name
  here=$NODE_NAME
  text=$(ha_says) || return 1
  while read -r sid node state; do
    if [[ $node != "$here" || $STOPPED == *" $state "* ]]; then
      gone+="$sid "
    elif [[ $LEFT_ALONE != *" $state "* && " $1 " != *" $sid "* ]]; then
      more+="$sid "
    fi
  done < <(services_in "$text")
  for sid in $1 $more; do
    [[ $gone == *" $sid "* ]] || printf '%s ' "$sid"
  done
}

# needs_watchdog - in words: what keeps HA's watchdog armed on any node of the cluster; nothing where HA is idle. A line of its agent:
# `lrm pve2 (active, watchdog active, Sat Nov 21 03:29:28 2026)`; older ones don't name the watchdog.
needs_watchdog() {
  local text sid _ state found='' status=0
  has_services || status=$?
  ((status != 1)) || return 0
  text=$(ha_says) || { printf '%s' "guests, and \`ha-manager status\` gives no answer" && return; }
  while read -r sid _ state; do
    [[ $STOPPED == *" $state "* ]] || found+=", $sid"
  done < <(services_in "$text")
  find_node_name
  found+=$(awk -v here="$NODE_NAME" '$1 == "lrm" && $2 != here && $3 == "(active," && !/watchdog standby/ { printf ", an active agent on %s", $2 }' <<<"$text")
  printf '%s' "${found#, }"
}

in_words() { # SERVICES
  local sid text=''
  for sid in $1; do
    text+=", $(called_guest "$sid")"
  done
  printf '%s' "${text#, }"
}

# still_away SERVICES - of these, those that run on another node, or are on their way; not one that was stopped meanwhile, or taken out of HA.
# Status 1: no answer.
still_away() {
  local text sid node state here
  find_node_name
  here=$NODE_NAME
  text=$(ha_says) || return 1
  while read -r sid node state; do
    [[ " $1 " != *" $sid "* || $node == "$here" || $LEFT_ALONE == *" $state "* ]] || printf '%s ' "$sid"
  done < <(services_in "$text")
}
