#!/usr/bin/env bash
# A guest's starts and shutdowns on this node, by Proxmox VE's tasks; and whether one that this program has shut down to run again still is to.
# Needs: common
#
# Gives: last_start KIND ID SINCE -> STARTED, LAST_START; find_why_off KIND ID AT BOOT OURS OFF -> WHY; boot_now. KIND: qm (a VM) or vz (a container).
TASKS=/var/log/pve/tasks
# How long it counts that a guest is to run again, and how soon after it was noted a shutdown is this program's where people may have the same user, in seconds.
COUNTS_SECONDS=3600
PROMPT_SECONDS=30

boot_now() { cat "$ROOT/proc/sys/kernel/random/boot_id" 2>/dev/null || :; }

# last_start KIND ID SINCE - sets LAST_START: the UPID of the last start since then that has ended; and STARTED: has any of them ended well? (yes | no).
# A line of `index` is `UPID ENDTIME STATUS`, the latest last.
last_start() {
  local upid status start
  STARTED=no LAST_START=''
  while read -r upid _ status; do
    [[ $upid == UPID:*:*:*:*:"$1"start:"$2":*: ]] || continue
    IFS=: read -r _ _ _ _ start _ <<<"$upid"
    [[ $start =~ ^[0-9A-F]{8}$ ]] || continue
    ((16#$start >= $3)) || continue
    LAST_START=$upid
    [[ $status != OK && $status != WARNINGS* ]] || STARTED=yes
  done < <(cat "$ROOT$TASKS/index.1" "$ROOT$TASKS/index" 2>/dev/null | tail -n 2000)
}

# find_why_off KIND ID AT BOOT OURS OFF - of a guest that is off: sets WHY, for which it isn't to run again: whoever has switched it off since wants it off, and
# what isn't certain starts nothing. Empty: it is to run. AT: seconds since 1970, when it was noted that it ran; BOOT: of the node, then; OURS: the user as which
# this program shuts it down; OFF: yes: it was off by then already, else it was shut down next.
find_why_off() {
  local apart
  apart=$(($(date +%s) - $3))
  WHY=''
  last_start "$1" "$2" "$(($3 + 1))" # a start of that very second may be the one before
  if [[ $STARTED == yes ]]; then
    WHY="it was started since"
  elif [[ -z $4 || $4 != "$(boot_now)" ]]; then
    WHY="the node has restarted since"
  elif ((${apart#-} >= COUNTS_SECONDS)); then
    WHY="that is more than an hour ago"
  elif [[ $6 != yes ]]; then
    find_who_shut "$@"
  fi
}

# find_who_shut - as find_why_off: whose shutdowns there were since. One that HA carries out is root's task, after the request to HA. One of ours that failed has
# switched nothing off. People may have the same user, but no token: theirs is what comes later, of ours each is noted anew.
find_who_shut() {
  local start type user went ours=no by_ha=no
  while read -r start type user went; do
    if [[ ! $start =~ ^[0-9A-F]{8}$ ]] || ((16#$start < $3)); then continue; fi
    if [[ $user == "$5" ]] && { [[ $5 == *!* ]] || ((16#$start <= $3 + PROMPT_SECONDS)); }; then
      [[ $went == well ]] || continue
      ours=yes
      [[ $type != hastop ]] || by_ha=yes
    elif [[ $by_ha == no || $user != root@pam ]]; then
      WHY="someone else has switched it off since ($user)"
      return 0
    fi
  done < <(shutdowns "$1" "$2")
  [[ $ours == yes ]] || WHY="it went off by itself, or from within"
}

# shutdowns KIND ID - of each its start, type, user, and whether it ended well, or runs still (well | badly). A line of `active` is `UPID 0|1 [ENDTIME STATUS]`; one
# that has ended may be there as running for some seconds.
shutdowns() {
  cat "$ROOT$TASKS/index.1" "$ROOT$TASKS/index" "$ROOT$TASKS/active" 2>/dev/null | tail -n 2000 |
    awk -F '[: ]' -v kind="$1" -v id="$2" '
      $1 == "UPID" && $7 == id && ($6 == kind "shutdown" || $6 == kind "stop" || $6 == "hastop") {
        task = $5 " " $6 " " $8 " " $3
        status = length($10) > 1 ? $11 : $12
        if (status != "" || !(task in ended)) ended[task] = status
      }
      END {
        for (task in ended) {
          split(task, part, " ")
          print part[1], part[2], part[3], (ended[task] == "" || ended[task] ~ /^(OK|WARNINGS)$/ ? "well" : "badly")
        }
      }' | sort -u
}
