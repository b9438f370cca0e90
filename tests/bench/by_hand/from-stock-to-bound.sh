#!/usr/bin/env bash
# The floor: what takes a stock host to a bound card at the least, as somebody would write it for one host by hand. It writes the files, makes the
# initramfs and the boot menu once each, restarts the host, waits for it, and looks. It keeps nothing for a way back, arms nothing, and a cut anywhere is the user's.
#
# from-stock-to-bound.sh FILES CHECK SSH…
#   FILES: a folder with etc/…; CHECK: what the host is to run afterwards, by its exit status; SSH: the command line of ssh, to which a command is added.
set -euo pipefail
files=$1 check=$2
shift 2
boot_id() { "$@" cat /proc/sys/kernel/random/boot_id 2>/dev/null || :; }

before=$(boot_id "$@")
tar -C "$files" --owner=0 --group=0 -c etc | "$@" 'tar -C / --no-same-owner -x && update-initramfs -u -k all && update-grub'
"$@" 'systemctl reboot' || :
# Half a second is soon enough for somebody who waits.
until after=$(boot_id "$@") && [[ -n $after && $after != "$before" ]]; do
  sleep 0.5
done
"$@" "$check"
