#!/usr/bin/env bash
# A VM's starts and shutdowns, by Proxmox VE's tasks: what the log of the last start says of its cards, whether any of them ended well, and
# whether a VM that was shut down to run again still is to. HA starts a VM as root@pam, whose tasks a token without Sys.Audit doesn't see.
# Needs: files, guest_tasks
#
# Arguments: VMID, SINCE (seconds since 1970: an earlier start doesn't count; of `owed`: when it was noted that it ran), BOOT, OURS, OFF (of `owed`, as
#   find_why_off has them).
# Output: of `started` {"task": the start's UPID, empty: there is none that has ended, "log": its lines of a reset that failed and of a card that doesn't wake up,
#   "started": yes if any of them ended well, else no, "now": the node's clock, in seconds since 1970, "boot": what tells the node's boot from every other};
#   of `owed` {"why": why a VM that is off isn't to run again; empty: it is}.
# Verbs: started, owed, which change nothing.

# A log lies in the folder of the last digit of its task's start.
started() {
  local start lines=''
  last_start qm "$VMID" "$SINCE"
  if [[ -n $LAST_START ]]; then
    IFS=: read -r _ _ _ _ start _ <<<"$LAST_START"
    lines=$(grep -aE 'failed to reset PCI device|stuck in D3' "$ROOT$TASKS/${start: -1}/$LAST_START" 2>/dev/null | head -c 4000) || lines=''
  fi
  printf '{"task":%s,"log":%s,"started":"%s","now":%s,"boot":%s}\n' "$(json_string "$LAST_START")" "$(json_string "$lines")" "$STARTED" "$(date +%s)" \
    "$(json_string "$(boot_now)")"
}

owed() {
  find_why_off qm "$VMID" "$SINCE" "$BOOT" "$OURS" "$OFF"
  printf '{"why":%s}\n' "$(json_string "$WHY")"
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
