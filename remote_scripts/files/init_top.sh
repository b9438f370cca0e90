#!/bin/sh
# Written by homelab, which takes it away again (pulumi destroy).
# Gives the PCI functions named on the kernel command line to vfio-pci, before udev loads any driver:
#   homelab.vfio=0000:01:00.0=10de:2b85,0000:01:00.1=10de:22e8
# A function that is no longer that vendor:device is left alone: renumbered buses can't catch the wrong device. Without the
# word nothing happens, so the command line is the one switch.
# initramfs-tools sets ROOT to the root file system's device; the prefix for tests is HOMELAB_SYSROOT.
case "${1:-}" in prereqs) exit 0 ;; esac

root=${HOMELAB_SYSROOT:-}
bus=$root/sys/bus/pci

say() { echo "homelab-vfio: $*" >"$root/dev/kmsg"; }

functions=
read -r cmdline <"$root/proc/cmdline"
for word in $cmdline; do
  case $word in homelab.vfio=*) functions=${word#homelab.vfio=} ;; esac
done
[ -n "$functions" ] || exit 0

chosen='' IFS=' ,' # an initramfs without busybox has no tr
for function in $functions; do
  address=${function%%=*}
  wanted=${function#*=}
  device=$bus/devices/$address
  if [ ! -e "$device/vendor" ]; then
    say "$address is not there (wanted $wanted)"
    continue
  fi
  read -r vendor <"$device/vendor"
  read -r id <"$device/device"
  if [ "${vendor#0x}:${id#0x}" != "$wanted" ]; then
    say "$address is ${vendor#0x}:${id#0x}, not $wanted: left alone"
    continue
  fi
  echo vfio-pci >"$device/driver_override"
  chosen="$chosen $address"
done

modprobe vfio-pci || say "vfio-pci can't be loaded: the functions stay without a driver"

for address in $chosen; do
  driver=none
  if [ -e "$bus/devices/$address/driver" ]; then
    driver=$(readlink "$bus/devices/$address/driver")
    driver=${driver##*/}
  fi
  say "$address for vfio-pci, driver now: $driver"
  [ "$driver" != vfio-pci ] || continue
  # A built-in driver (xhci_hcd, simpledrm's aperture) has it already: take it away.
  [ "$driver" = none ] || echo "$address" >"$bus/devices/$address/driver/unbind"
  echo "$address" >"$bus/drivers_probe"
done
exit 0
