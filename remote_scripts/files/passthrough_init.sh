#!/bin/sh
# /init of homelab's test VM: says on the console which PCI functions there are, then switches the machine off.
#   homelab-passthrough BEGIN
#   homelab-passthrough 0000:01:00.0 10de:2b85 030000 0:67108864:0x000000000014220c ...   (each BAR: index, bytes, flags)
#   homelab-passthrough END 7   (how many functions)
# Nothing but sh and mount is there. The prefix for tests is HOMELAB_SYSROOT.
root=${HOMELAB_SYSROOT:-}

mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
# From here on the kernel keeps its messages to itself: they would come between our words.
echo 1 >"$root/proc/sys/kernel/printk"

echo
echo "homelab-passthrough BEGIN"
count=0
for device in "$root"/sys/bus/pci/devices/*; do
  [ -e "$device/vendor" ] || continue
  read -r vendor <"$device/vendor"
  read -r id <"$device/device"
  read -r class <"$device/class"
  bars=
  index=0
  while [ "$index" -lt 6 ] && read -r start end flags; do
    # A BAR without an address isn't there, or there was no room for it.
    if [ "$start" != 0x0000000000000000 ]; then
      bars="$bars $index:$((end - start + 1)):$flags"
    fi
    index=$((index + 1))
  done <"$device/resource"
  echo "homelab-passthrough ${device##*/} ${vendor#0x}:${id#0x} ${class#0x}$bars"
  count=$((count + 1))
done
echo "homelab-passthrough END $count"

# A machine that is off sends nothing more: what may still wait for the serial line (a page of 4096 bytes) is this padding.
count=0
while [ "$count" -lt 64 ]; do
  echo "                                                                                                                                "
  count=$((count + 1))
done
echo o >"$root/proc/sysrq-trigger"
# The machine goes off while this waits for input that never comes. An init that ends is a panic.
read -r _
