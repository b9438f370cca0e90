#!/bin/sh
# Written by homelab, which takes it away again (pulumi destroy).
# systemd-boot: beside each entry of Proxmox VE a second one with the kernel command line as it was before. Runs after
# zz-proxmox-boot, which makes the entries when a kernel comes or goes; with `remove` it takes them away.
# The default entry is chosen by the pattern proxmox-*, which ours don't match.
# Ends with 1 when an ESP's entries could not be made (it may be full): those that were there are whole, and nothing half-written is left.
set -e
ROOT=${ROOT:-}
[ -s "$ROOT/etc/kernel/proxmox-boot-uuids" ] || exit 0
words=$(cat "$ROOT"/var/lib/homelab/cmdline/* 2>/dev/null) || words=''

second_entry() { # ENTRY OURS
  temporary=${2%/*}/.homelab-tmp
  options=" $(sed -n 's/^options[[:space:]]*//p' "$1") "
  for word in $words; do
    case $options in *" $word "*) options="${options%%" $word "*} ${options#*" $word "}" ;; esac
  done
  options=${options# }
  text=$(sed -e 's/^title .*/& without GPU passthrough/' -e '/^options/d' "$1" && printf 'options  %s' "${options% }") || return 1
  [ "$text" != "$(cat "$2" 2>/dev/null)" ] || return 0
  # What is on the disk is looked at before it takes its name: a FAT that is full may say so late.
  if ! { printf '%s\n' "$text" >"$temporary" && sync "$temporary" && [ "$(cat "$temporary")" = "$text" ] && mv -f "$temporary" "$2"; }; then
    rm -f "$temporary"
    echo "homelab: ${2##*/} could not be written to the ESP $uuid, which has $(df -Pk "${2%/*}" | awk 'NR == 2 { print $4 }') KiB free" >&2
    return 1
  fi
}

second_entries() { # ESP, mounted
  entries=$1/loader/entries
  rm -f "$entries/.homelab-tmp"
  for ours in "$entries"/homelab-without-gpu-*.conf; do
    [ -e "$ours" ] || continue
    if [ "$2" = remove ] || [ ! -e "$entries/proxmox-${ours##*/homelab-without-gpu-}" ]; then rm -f "$ours" || return 1; fi
  done
  [ "$2" != remove ] || return 0
  for entry in "$entries"/proxmox-*.conf; do
    [ -e "$entry" ] || continue
    # Proxmox VE's own may have been cut short by a full ESP.
    if ! grep -q '^options[[:space:]]' "$entry"; then
      echo "homelab: ${entry##*/} on the ESP $uuid has no options: it isn't whole" >&2
      return 1
    fi
    second_entry "$entry" "$entries/homelab-without-gpu-${entry##*/proxmox-}" || return 1
  done
}

# Mounts of a run that was killed. Another one that is at work (a kernel is being installed) has its own.
for old in "$ROOT"/run/homelab-esp.*; do
  [ -d "$old" ] || continue
  pid=${old##*/homelab-esp.}
  if ! kill -0 "${pid%%.*}" 2>/dev/null; then
    umount "$old" 2>/dev/null || :
    rmdir "$old" 2>/dev/null || :
  fi
done

status=0
while read -r uuid || [ -n "$uuid" ]; do
  [ -n "$uuid" ] && [ -e "$ROOT/dev/disk/by-uuid/$uuid" ] || continue # zz-proxmox-boot warns of one that isn't there
  esp=$(mktemp -d "$ROOT/run/homelab-esp.$$.XXXXXX")
  if mount "$ROOT/dev/disk/by-uuid/$uuid" "$esp"; then
    second_entries "$esp" "${1:-}" || status=1
    sync -f "$esp" || status=1
    umount "$esp" || status=1
  else
    status=1
  fi
  rmdir "$esp" || status=1
done <"$ROOT/etc/kernel/proxmox-boot-uuids"
exit "$status"
