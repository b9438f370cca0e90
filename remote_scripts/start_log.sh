#!/usr/bin/env bash
# A VM's starts, by Proxmox VE's tasks: what the log of the last one says of cards that weren't reset, and whether any of them ended well. HA starts a VM as
# root@pam, whose tasks a token without Sys.Audit doesn't see.
# Needs: files
#
# Arguments: VMID, SINCE (seconds since 1970: an earlier start doesn't count).
# Output: {"task": the start's UPID, empty: there is none that has ended, "log": its lines of a reset that failed,
#   "started": yes if any of them ended well, else no, "now": the node's clock, in seconds since 1970, "boot": what tells the node's boot from every other}.
# Verbs: started, which changes nothing.
TASKS=/var/log/pve/tasks

# A line of `index` is `UPID ENDTIME STATUS`, the latest last; a log lies in the folder of the last digit of its task's start.
started() {
  local upid status start found='' lines='' well=no
  while read -r upid _ status; do
    [[ $upid == UPID:*:*:*:*:qmstart:"$VMID":*: ]] || continue
    IFS=: read -r _ _ _ _ start _ <<<"$upid"
    [[ $start =~ ^[0-9A-F]{8}$ ]] || continue
    ((16#$start >= SINCE)) || continue
    found=$upid
    [[ $status != OK && $status != WARNINGS* ]] || well=yes
  done < <(cat "$ROOT$TASKS/index.1" "$ROOT$TASKS/index" 2>/dev/null | tail -n 2000)
  if [[ -n $found ]]; then
    IFS=: read -r _ _ _ _ start _ <<<"$found"
    lines=$(grep -aF 'failed to reset PCI device' "$ROOT$TASKS/${start: -1}/$found" 2>/dev/null | head -c 4000) || lines=''
  fi
  printf '{"task":%s,"log":%s,"started":"%s","now":%s,"boot":%s}\n' "$(json_string "$found")" "$(json_string "$lines")" "$well" "$(date +%s)" \
    "$(json_string "$(cat "$ROOT/proc/sys/kernel/random/boot_id" 2>/dev/null)")"
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
