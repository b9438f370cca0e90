#!/usr/bin/env bash
# Whether a guest of this host runs.
# Needs: common
#
# Gives: find_power PROGRAM ID [SECONDS] -> POWER_NOW, POWER_SAID.

# For so long a guest is asked whether it runs, in seconds, unless whoever asks has a limit of its own. On a slow host one answer takes 5 to 20 s.
STATUS_SECONDS=${STATUS_SECONDS:-60}

# find_power qm|pct ID [SECONDS] - sets POWER_NOW: on, off, gone (no guest of this node) or unknown; and POWER_SAID, what was answered last. What isn't known is
# neither on nor off: it is asked again until then. `qm status` prints QMP's own word (PVE::CLI::qm, vmstatus with `full`), so that a VM which is paused, or waits for its disk (io-error), is on.
find_power() {
  local until=$((SECONDS + ${3:-STATUS_SECONDS})) folder=qemu-server
  [[ $1 == qm ]] || folder=lxc
  POWER_NOW=unknown
  while :; do
    if POWER_SAID=$(exec_within "$ASK_SECONDS" "$1" status "$2" 2>&1 </dev/null); then
      case ${POWER_SAID##*$'\n'} in
        'status: stopped') POWER_NOW=off ;;
        'status: unknown') ;;
        'status: '*) POWER_NOW=on ;;
      esac
    fi
    POWER_SAID=${POWER_SAID:-no answer within $ASK_SECONDS s}
    # Where Proxmox VE's own folder isn't there, such as at a restart of its service, no guest is gone.
    [[ $POWER_NOW != unknown || ! -d $ROOT/etc/pve/$folder || -e $ROOT/etc/pve/$folder/$2.conf ]] || POWER_NOW=gone
    if [[ $POWER_NOW != unknown ]] || ((SECONDS >= until)); then return 0; fi
    sleep 1
  done
}
