#!/bin/sh
# Written by homelab, which takes it away again (pulumi destroy).
# Puts vfio-pci and what it needs into every initramfs. Only below Linux 6.2 vfio_virqfd is a module of its own.
case "${1:-}" in prereqs) exit 0 ;; esac
. "${HOMELAB_ROOT:-}/usr/share/initramfs-tools/hook-functions"

manual_add_modules vfio vfio_iommu_type1 vfio_pci
# shellcheck disable=SC2154 # version: set by mkinitramfs
major=${version%%.*}
minor=${version#*.}
minor=${minor%%[!0-9]*}
if [ "$major" -lt 6 ] || { [ "$major" -eq 6 ] && [ "$minor" -lt 2 ]; }; then
  manual_add_modules vfio_virqfd
fi
