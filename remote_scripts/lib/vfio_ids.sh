#!/usr/bin/env bash
# Ids that other configuration than ours gives to vfio-pci: vendor:device[:subvendor[:subdevice[:class[:class_mask]]]], in hex, separated by commas.
# ffffffff is any (drivers/vfio/pci/vfio_pci.c). homelab/host/vfio_ids.py tells the same of a reading.
# Needs: common
#
# Gives: find_given [PATH...] -> VFIO_GIVEN, MENTIONS; names_device IDS FOLDER; has_override ADDRESS.

# find_given [PATH...] - sets VFIO_GIVEN: of each option FILE, a tab, IDS; modprobe.d has them, and lines of initramfs-tools' modules, which is a module and its
# options. MENTIONS: files at or below these PATHs that speak of vfio-pci. One program looks through all of them.
# A line may go on in the next one (modprobe.d(5)), and a value may be quoted.
find_given() {
  local file files=() with_it=()
  VFIO_GIVEN=() MENTIONS=()
  for file in "$ROOT"/etc/modprobe.d/*.conf "$ROOT/etc/initramfs-tools/modules"; do
    [[ ! -e $file || -d $file ]] || files+=("$file")
  done
  mapfile -d '' -t with_it < <(grep -arlsZE 'vfio[-_]pci' "${files[@]}" "$@" /dev/null)
  files=()
  for file in "${with_it[@]}"; do
    if [[ $file == "$ROOT"/etc/modprobe.d/*.conf || $file == "$ROOT/etc/initramfs-tools/modules" ]]; then files+=("$file"); else MENTIONS+=("$file"); fi
  done
  ((${#files[@]} == 0)) || mapfile -t VFIO_GIVEN < <(awk '
    FNR == 1 { text = "" }
    { sub(/\r$/, ""); text = text $0 }
    text ~ /\\$/ { text = substr(text, 1, length(text) - 1); next }
    {
      line = text
      text = ""
      is_option = sub(/^[ \t]*options[ \t]+/, "", line)
      if (is_option != (FILENAME ~ /\.conf$/) || line !~ /^[ \t]*vfio[-_]pci[ \t]/) next
      gsub(/"/, "", line)
      count = split(line, words)
      for (i = 2; i <= count; i++) if (words[i] ~ /^ids=./) print FILENAME "\t" substr(words[i], 5)
    }' "${files[@]}")
}

# names_device IDS FOLDER - is the PCI function of that folder in sysfs among them?
names_device() {
  local ids id fields number have=() name i
  read -ra ids <<<"${1//,/ }"
  for name in vendor device subsystem_vendor subsystem_device class; do
    number=0
    [[ ! -r $2/$name ]] || read -r number <"$2/$name" || :
    have+=("$number")
  done
  for id in "${ids[@]}"; do
    id=${id,,}
    [[ $id =~ ^(0x)?[0-9a-f]{1,8}(:(0x)?[0-9a-f]{1,8}){1,5}$ ]] || continue
    IFS=: read -ra fields <<<"${id//0x/}"
    for ((i = 0; i < 4; i++)); do
      number=${fields[i]:-ffffffff}
      ((16#$number == 0xffffffff || 16#$number == have[i])) || continue 2
    done
    (((16#${fields[4]:-0} ^ have[4]) & 16#${fields[5]:-0})) || return 0
  done
  return 1
}

# has_override ADDRESS - does driverctl put that PCI function on vfio-pci at each start? Older versions name its file without `pci-`.
has_override() { grep -qsE 'vfio[-_]pci' "$ROOT/etc/driverctl.d/pci-$1" "$ROOT/etc/driverctl.d/$1"; }
