#!/usr/bin/env bash
# What Proxmox VE's log of a VM's start says of cards that weren't reset. HA starts a VM as root@pam, whose tasks a token without Sys.Audit doesn't see.
# Needs: files
#
# Arguments: VMID, SINCE (seconds since 1970: an earlier start doesn't count).
# Output: {"task": the start's UPID, empty: there is none that has ended, "log": its lines of a reset that failed}.
# Verbs: started, which changes nothing.
TASKS=/var/log/pve/tasks

# A line of `index` is `UPID ENDTIME STATUS`, the latest last; a log lies in the folder of the last digit of its task's start.
started() {
  local upid start found='' lines=''
  while read -r upid _; do
    [[ $upid == UPID:*:*:*:*:qmstart:"$VMID":*: ]] || continue
    IFS=: read -r _ _ _ _ start _ <<<"$upid"
    [[ ! $start =~ ^[0-9A-F]{8}$ ]] || ((16#$start < SINCE)) || found=$upid
  done < <(tail -n 1000 "$ROOT$TASKS/index" 2>/dev/null)
  if [[ -n $found ]]; then
    IFS=: read -r _ _ _ _ start _ <<<"$found"
    lines=$(grep -aF 'failed to reset PCI device' "$ROOT$TASKS/${start: -1}/$found" 2>/dev/null | head -c 4000) || lines=''
  fi
  printf '{"task":%s,"log":%s}\n' "$(json_string "$found")" "$(json_string "$lines")"
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
