#!/usr/bin/env bash
# The host's PCI functions, its modules, and what else binds devices: keys of read_host.sh's answer.
# Needs: common, lines, vfio_ids, read/text
#
# Gives: devices; modules; bound_by_others. Variables: ACS (of read_host.sh; no where it is not set).
PCI=$ROOT/sys/bus/pci/devices

# Every PCI function: what it is, what drives it, where it hangs, which disks and network interfaces are behind it.
# Without command substitutions inside the loop: a host has a hundred functions, and each would be a process.
devices() {
  local file target address name link separator='' path vendor device class subsystem_vendor subsystem_device boot_vga flag group
  local groups=("$ROOT"/sys/kernel/iommu_groups/*)
  local sriov_numvfs removable physfn kind
  declare -A links=() behind=() acs=() kinds=()
  while IFS=' ' read -r file target; do
    if [[ $file == "$PCI"/* ]]; then
      links[${file#"$PCI/"}]=$target
    elif [[ $target =~ .*/([0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])/ ]]; then
      behind[${BASH_REMATCH[1]}]+="${behind[${BASH_REMATCH[1]}]:+ }${file##*/}"
    fi
  done < <(find "$PCI"/* "$PCI"/*/driver "$PCI"/*/iommu_group "$PCI"/*/physfn "$ROOT"/sys/block/* "$ROOT"/sys/class/net/* \
    -maxdepth 0 -type l -printf '%p %l\n' 2>/dev/null)
  # Before there are groups, the bridges' Access Control Services tell how the kernel is going to draw them.
  if [[ ${ACS:-no} == yes || ! -e ${groups[0]} ]]; then
    while IFS=' ' read -r address flag kind; do
      acs[$address]=$flag
      [[ ! $kind =~ ^[a-z/\ -]+$ ]] || kinds[$address]=$kind
    done < <(isolation || :)
  fi
  for path in "$PCI"/*; do
    address=${path##*/}
    for name in vendor device class subsystem_vendor subsystem_device boot_vga sriov_numvfs removable; do
      printf -v "$name" 0
      [[ ! -r $path/$name ]] || read -r "${name?}" <"$path/$name"
    done
    name=$address/driver
    link=${links[$name]:-}
    name=$address/iommu_group
    group=${links[$name]:-null}
    name=$address/physfn
    physfn=${links[$name]:-}
    # "removable" is what hangs on an external port; "fixed" or "unknown" isn't known to.
    [[ $removable == removable ]] && removable=true || removable=false
    flag=${acs[$address]:-false}
    printf '%s{"address":"%s","vendor":"%s","device":"%s","subsystem":"%s:%s","class":"%s","boot_vga":%s,"driver":"%s","group":%s,"acs":%s,"path":"%s","behind":' \
      "$separator" "$address" "${vendor#0x}" "${device#0x}" "${subsystem_vendor#0x}" "${subsystem_device#0x}" "${class#0x}" \
      "$boot_vga" "${link##*/}" "${group##*/}" "$flag" "${links[$address]:-}"
    json_string "${behind[$address]:-}" # an interface may have nearly any name
    printf ',"physfn":"%s","vfs":%s,"removable":%s,"express":"%s"}' "${physfn##*/}" "$sriov_numvfs" "$removable" "${kinds[$address]:-}"
    separator=,
  done
}

# isolation - for each PCI function a line: its address; has it Access Control Services, true or false; which kind of PCIe device it is,
# in lower case, such as `root port`, nothing for conventional PCI.
isolation() {
  (exec_within "$ASK_SECONDS" lspci -D -vv 2>/dev/null) | awk '
    function told() { if (address != "") print address, acs, tolower(kind) }
    /^[0-9a-f]/ { told(); address = $1; acs = "false"; kind = "" }
    /Access Control Services/ { acs = "true" }
    /Capabilities: \[[0-9a-f]+\] Express / {
      kind = $0
      sub(/^.*\] Express (\(v[0-9]+\) )?/, "", kind)
      sub(/ *[,(].*$/, "", kind)
    }
    END { told() }'
}

modules() {
  local line name loaded=()
  read_lines "$ROOT/proc/modules"
  for line in "${READ_LINES[@]}"; do
    name=${line%% *}
    case $name in vfio* | nouveau | nvidia* | nova*) loaded+=("$name") ;; esac
  done
  for name in vfio vfio_iommu_type1 vfio_pci; do # built into the kernel, they aren't in /proc/modules
    [[ " ${loaded[*]} " == *" $name "* || ! -d $ROOT/sys/module/$name ]] || loaded+=("$name")
  done
  json_list "${loaded[@]}"
}

# What somebody else gives to vfio-pci: ids, by file (those on the command line are seen there), and files that speak of
# vfio-pci in another way, from which nothing is concluded.
bound_by_others() {
  local file given of='' ids='' all='' separator='' mentions=() files=()
  # A link to /dev/null, which is no file, masks one.
  for file in "$ROOT"/etc/modprobe.d/*.conf "$ROOT/etc/initramfs-tools/modules" "$ROOT"/etc/driverctl.d/*; do [[ ! -f $file ]] || files+=("$file"); done
  note_unreadable "${files[@]}"
  printf ',"vfio_files":{'
  find_given "$ROOT"/etc/{driverctl.d,udev/rules.d,initramfs-tools/scripts,systemd/system,rc.local}
  for given in "${VFIO_GIVEN[@]}"; do
    file=${given%%$'\t'*}
    [[ $file == "$of" ]] || ids_of_file
    of=$file
    ids+=${ids:+,}${given#*$'\t'}
  done
  ids_of_file
  printf '}'
  json_entry vfio_ids "$all"
  for file in "${MENTIONS[@]}"; do
    file=${file#"$ROOT"}
    [[ $file == */homelab-* ]] || mentions+=("$file")
  done
  put_in_order "${mentions[@]}"
  printf ',"vfio_mentions":'
  json_list "${IN_ORDER[@]}"
}

# ids_of_file - of `bound_by_others`: what was collected of one file.
ids_of_file() {
  [[ -n $ids ]] || return 0
  all+=${all:+,}$ids
  printf '%s' "$separator"
  json_string "${of#"$ROOT"}"
  printf ':'
  json_string "$ids"
  separator=, ids=''
}
