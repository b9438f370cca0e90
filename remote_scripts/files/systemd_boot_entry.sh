#!/bin/sh
# Written by homelab, which takes it away again (pulumi destroy).
# systemd-boot: beside each entry of Proxmox VE a second one with the kernel command line as it was before. Runs after
# zz-proxmox-boot, which makes the entries when a kernel comes or goes; with `remove` it takes them away.
# The default entry is chosen by the pattern proxmox-*, which ours don't match.
set -e
ROOT=${ROOT:-}
[ -s "$ROOT/etc/kernel/proxmox-boot-uuids" ] || exit 0
words=$(cat "$ROOT"/var/lib/homelab/cmdline/* 2>/dev/null) || words=''

second_entries() { # ESP, mounted
  rm -f "$1"/loader/entries/homelab-without-gpu-*.conf
  [ "$2" != remove ] || return 0
  for entry in "$1"/loader/entries/proxmox-*.conf; do
    [ -e "$entry" ] || continue
    options=" $(sed -n 's/^options[[:space:]]*//p' "$entry") "
    for word in $words; do
      case $options in *" $word "*) options="${options%%" $word "*} ${options#*" $word "}" ;; esac
    done
    options=${options# }
    name=${entry##*/proxmox-}
    sed -e 's/^title .*/& without GPU passthrough/' -e '/^options/d' "$entry" >"$1/loader/entries/.homelab-tmp"
    printf 'options  %s\n' "${options% }" >>"$1/loader/entries/.homelab-tmp"
    mv -f "$1/loader/entries/.homelab-tmp" "$1/loader/entries/homelab-without-gpu-$name"
  done
}

while read -r uuid || [ -n "$uuid" ]; do
  [ -e "$ROOT/dev/disk/by-uuid/$uuid" ] || continue # zz-proxmox-boot warns of it
  esp=$(mktemp -d "$ROOT/var/tmp/homelab-esp.XXXXXX")
  if ! mount "$ROOT/dev/disk/by-uuid/$uuid" "$esp"; then
    rmdir "$esp"
    exit 1
  fi
  status=0
  second_entries "$esp" "${1:-}" || status=$?
  umount "$esp"
  rmdir "$esp"
  [ "$status" = 0 ] || exit "$status"
done <"$ROOT/etc/kernel/proxmox-boot-uuids"
