#!/usr/bin/env bash
# What is wrong with cards or with how the host boots, as the kernel and Proxmox VE's tools say it: keys of read_host.sh's answer.
# Needs: common, boot, read/devices
#
# Gives: signs; head_and_tail LINES. Variables: SIGNS (an extended regular expression; empty: the log isn't read), BOOT_STATUS.

# What is wrong with cards or with how the host boots, as the kernel and Proxmox VE's tools say it; what it means is decided elsewhere.
signs() {
  local path code bytes said='' lost=() unsafe=false
  [[ -z $SIGNS ]] || read_kernel_log
  [[ -z $SIGNS ]] || said=$(kernel_says | grep -iE "$SIGNS" | head_and_tail 1000) || :
  for path in "$PCI"/*; do
    code=''
    [[ ! -r $path/class ]] || read -r code <"$path/class"
    [[ $code == 0x03* || $code == 0x12* || $code == 0x0403* ]] || continue
    # Reading a card that is gone can take long; a virtual function has no ids there, but a class.
    bytes=$(within 5 od -An -v -tx1 -N16 "$path/config" 2>/dev/null) || continue
    bytes=${bytes//[[:space:]]/}
    [[ $bytes != ffffffffffffffffffffffffffffffff && $bytes != 0100ffff* ]] || lost+=("${path##*/}")
  done
  # As the module has it, or will have it when it is loaded.
  if [[ $(cat "$ROOT/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts" 2>/dev/null) == Y ]] ||
    grep -qsE '^[[:space:]]*options[[:space:]]+vfio[-_]iommu[-_]type1[[:space:]](.*[[:space:]])?allow_unsafe_interrupts=[1yY]' "$ROOT"/etc/modprobe.d/*.conf; then
    unsafe=true
  fi
  json_entry kernel_log "$said"
  printf ',"lost":'
  json_list "${lost[@]}"
  printf ',"unsafe_interrupts":%s' "$unsafe"
  json_entry boot_warnings "$(grep '^WARN: ' <<<"$BOOT_STATUS" || :)"
}

# head_and_tail LINES - of standard input.
head_and_tail() {
  awk -v most="$1" '{ line[NR] = $0 } END { for (i = 1; i <= NR; i++) {
    if (NR <= most || i <= most / 2 || i > NR - most / 2) print line[i]
    else if (i - 1 <= most / 2) print "… " NR - most " lines are left out here …" } }'
}
