#!/usr/bin/env bash
# Who else sees to a guest that ran before a restart: somebody by a task, HA, a run that hands it a card.
# Needs: common, pve, handover/places
#
# Gives: was_touched ID SINCE -> START_FAILED; under_ha PROGRAM ID; is_handed_a_card VMID. Variables: RAN_BOOTED (when this boot began, in seconds since 1970).
RAN_TASKS=/var/log/pve/tasks

# is_handed_a_card VMID - does its start take a card from containers? Not while a run is at work.
is_handed_a_card() {
  local OPTION
  find_option "$1" hookscript
  [[ $OPTION == *"/$HOOK_FILE" ]]
}

# was_touched ID SINCE - has a task been about it since? Not counted: its shutdown by the host that went down, which is root's, after `stopall` (pve-guests.service), and consoles.
# Nor its start before that host went down: it ran then, as it was noted.
# A line is `UPID …`, its times hexadecimal; ` END STATUS` follows, in `active` ` 1 END STATUS`, or ` 0` while it runs. Status 1: no; 2: nobody knows.
# START_FAILED: how the last of these tasks has ended, if it was a start that failed.
was_touched() {
  START_FAILED=''
  local file files=() text booted
  printf -v booted '%08X' "$RAN_BOOTED"
  (($2 <= RAN_BOOTED)) || booted=FFFFFFFF # the clock was set back: when the boot came isn't known
  for file in "$ROOT$RAN_TASKS/index.1" "$ROOT$RAN_TASKS/index" "$ROOT$RAN_TASKS/active"; do [[ ! -e $file ]] || files+=("$file"); done
  ((${#files[@]} > 0)) || return 1
  text=$(exec_within "$ASK_SECONDS" cat "${files[@]}" 2>/dev/null) || return 2
  START_FAILED=$(awk -F '[: ]' -v id="$1" -v from="$(printf '%08X' "$2")" -v booted="$booted" '
    $1 != "UPID" || $5 "" < from "" { next }
    $6 == "stopall" && (down == "" || $5 "" < down) { down = $5 "" }
    $7 == id && $6 !~ /^(vncproxy|vncshell|spiceproxy|spiceshell|termproxy)$/ { about[++many] = $0; if ($5 "" >= last "") { last = $5 ""; kind = $6; ended = $0 } }
    END {
      for (number = 1; number <= many; number++) {
        split(about[number], task, "[: ]")
        if (task[6] ~ /^(qm|vz)start$/ && down != "" && task[5] "" <= down "") continue
        if (down == "" || task[5] "" < down || task[5] "" > booted "" || task[8] != "root@pam" || task[6] !~ /^(qm|vz)shutdown$/) touched = 1
      }
      if (touched && kind ~ /^(qm|vz)start$/ && sub(/^[^ ]*: (1 )?[0-9A-F]+ +/, "", ended) && ended !~ /^(OK|WARNINGS.*)?$/) print ended
      exit !touched
    }' <<<"$text")
}

# under_ha PROGRAM ID - which starts it by itself, but in the state `ignored` (PVE::HA::Config::service_is_ha_managed). Status 1: no; 2: nobody knows.
under_ha() {
  local kind=ct text
  [[ $1 == pct ]] || kind=vm
  if ! text=$(exec_pve cat "$ROOT$HA_CONFIG"); then
    pve test -d "$ROOT/etc/pve" && ! pve test -e "$ROOT$HA_CONFIG" || return 2
  fi
  awk -v kind="$kind" -v id="$2" '
    /^[^ \t#]/ { on = ($1 == kind ":" && $2 == id || $1 == kind ":" id); if (on) found = 1 }
    on && $1 == "state" && $2 == "ignored" { found = 0 }
    END { exit !found }' <<<"$text"
}
