#!/bin/sh
# Written by homelab, which takes it away again (pulumi destroy).
# A second boot entry with the kernel command line as it was before: it gives the GPU back to the host for one boot.
# 10_linux makes it, so that it follows kernel updates. Its ids are renamed: a doubled `gnulinux-...` id would be found
# twice by `proxmox-boot-tool kernel pin` and by GRUB_DEFAULT.
set -e
[ -n "${HOMELAB_WORDS:-}" ] || exit 0
words=" ${GRUB_CMDLINE_LINUX_DEFAULT:-} "
for word in $HOMELAB_WORDS; do
  case $words in *" $word "*) words="${words%%" $word "*} ${words#*" $word "}" ;; esac
done
words=${words# }
GRUB_CMDLINE_LINUX_DEFAULT=${words% }
GRUB_DISTRIBUTOR="${GRUB_DISTRIBUTOR:-Linux} without GPU passthrough,"
GRUB_DISABLE_RECOVERY=true
export GRUB_CMDLINE_LINUX_DEFAULT GRUB_DISTRIBUTOR GRUB_DISABLE_RECOVERY
"${HOMELAB_ROOT:-}/etc/grub.d/10_linux" | sed 's/gnulinux-/homelab-without-gpu-/g'
