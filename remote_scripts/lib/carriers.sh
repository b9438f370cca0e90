# What the host can't do without, and the PCI functions on the way to it: its file systems and swap, the network over which it is
# reached, its keyboards; and who has a graphics card open. Read from sysfs and /proc; nothing is changed.
#
# Gives: vital and holders, as keys of read_host.sh's answer. What can't be told is said (`trouble`): the caller decides.

declare -A CARRIERS=() # addresses of the PCI functions on the way, of what is looked at now
declare -A SEEN=()     # block devices and interfaces that were looked at on this way: stacks may meet again
TROUBLE=''             # why the way could not be followed to its end

# What of the file system must be there: these paths, and what is mounted below /boot, /efi and /var/lib/vz.
NEEDED_PATHS=(/ /boot /boot/efi /efi /usr /etc /var /var/lib /var/lib/pve-cluster /var/lib/vz)

vital() {
  local separator=''
  printf ',"vital":['
  vital_storage
  vital_network
  vital_keyboards
  printf ']'
}

# vital_entry KIND NAME - one entry of what was collected; begins the next.
vital_entry() {
  local address addresses=()
  for address in "${!CARRIERS[@]}"; do addresses+=("$address"); done
  printf '%s{"kind":"%s","name":%s,"devices":%s,"trouble":%s}' "$separator" "$1" "$(json_string "$2")" \
    "$(json_list "${addresses[@]}")" "$(json_string "$TROUBLE")"
  separator=,
  CARRIERS=() SEEN=() TROUBLE=''
}

# -- disks -------------------------------------------------------------------------------------------------------------------
vital_storage() {
  local source target fstype options uuid path mounts='' taken=' '
  [[ ! -r $ROOT/proc/mounts ]] || mounts=$(<"$ROOT/proc/mounts")
  while IFS=' ' read -r source target fstype options _; do
    # Of what is mounted over each other on one path, the last one counts; all of them are named.
    is_needed "$target" && [[ $taken != *" $source:$target "* ]] || continue
    taken+="$source:$target "
    file_system_carriers "$source" "$target" "$fstype" "$options"
    vital_entry storage "$target ($fstype on $source)"
  done <<<"$mounts"
  if [[ -r $ROOT/proc/swaps ]]; then
    while read -r path fstype _; do
      [[ $path == /* ]] || continue
      if [[ $fstype == file ]]; then path_carriers "$path"; else device_carriers "$path"; fi
      vital_entry storage "swap on $path"
    done <"$ROOT/proc/swaps"
  fi
  # ESPs that proxmox-boot-tool manages aren't mounted.
  if [[ -r $ROOT/etc/kernel/proxmox-boot-uuids ]]; then
    while read -r uuid; do
      [[ -n $uuid && -e $ROOT/dev/disk/by-uuid/$uuid ]] || continue
      device_carriers "/dev/disk/by-uuid/$uuid"
      vital_entry storage "the EFI system partition $uuid"
    done <"$ROOT/etc/kernel/proxmox-boot-uuids"
  fi
}

# is_needed TARGET - is it the mount point of something that the host needs?
is_needed() {
  local path real
  case $1 in
    /boot/* | /efi/* | /var/lib/vz/*) return 0 ;;
  esac
  for path in "${NEEDED_PATHS[@]}"; do
    [[ $1 != "$path" ]] || return 0
    # /var/lib/vz may be a link to another disk.
    if [[ -L $ROOT$path ]]; then
      real=$(readlink -f "$ROOT$path") || continue
      real=${real#"$ROOT"}
      [[ $1 == / || ($real != "$1" && $real != "$1"/*) ]] || return 0
    fi
  done
  return 1
}

# path_carriers PATH - of the file system that a file is on.
path_carriers() {
  local source target fstype options best='' nearest=()
  while IFS=' ' read -r source target fstype options _; do
    if [[ ($1 == "$target" || $target == / || $1 == "$target"/*) && ${#target} -ge ${#best} ]]; then
      best=$target nearest=("$source" "$target" "$fstype" "$options")
    fi
  done <"$ROOT/proc/mounts"
  if ((${#nearest[@]})); then file_system_carriers "${nearest[@]}"; else TROUBLE="nothing is mounted that holds $1"; fi
}

file_system_carriers() { # SOURCE TARGET TYPE OPTIONS
  local source=$1
  case $3 in
    autofs) return 0 ;; # what stands for a file system that isn't mounted yet
    tmpfs | ramfs | rootfs) return 0 ;;
    zfs) pool_carriers "${source%%/*}" ;;
    nfs* | cifs | smb3 | ceph | fuse.ceph* | glusterfs | fuse.glusterfs | fuse.sshfs | 9p)
      # shellcheck disable=SC2046 # addresses hold no spaces
      network_carriers $(addresses_in "$source,${4:-}")
      ;;
    bcachefs)
      # All of its devices, joined by colons.
      while [[ -n $source ]]; do
        device_carriers "${source%%:*}"
        [[ $source == *:* ]] || break
        source=${source#*:}
      done
      ;;
    *)
      if [[ $source == /dev/* ]]; then device_carriers "$source" "$2"; else TROUBLE="nothing says which disk $source ($3 on $2) is on"; fi
      ;;
  esac
}

# device_carriers PATH [MOUNT POINT] - of a device in /dev.
device_carriers() {
  local real name number sibling
  if [[ $1 == /dev/zvol/* ]]; then
    real=${1#/dev/zvol/}
    pool_carriers "${real%%/*}"
    return 0
  fi
  real=$(readlink -f "$ROOT$1") || real=''
  name=${real##*/}
  if [[ ! -e $ROOT/sys/class/block/$name && -n ${2:-} ]] && number=$(mountpoint -d "$ROOT$2" 2>/dev/null); then
    # /dev/root, which is no device: the kernel's number of it is.
    real=$(readlink -f "$ROOT/sys/dev/block/$number") || real=''
    name=${real##*/}
  fi
  block_carriers "$name" "$1"
  # btrfs names one of its devices.
  for sibling in "$ROOT"/sys/fs/btrfs/*/devices/"$name"; do
    [[ -e $sibling ]] || continue
    for real in "${sibling%/*}"/*; do block_carriers "${real##*/}" "$1"; done
  done
}

# block_carriers NAME PATH - of a block device by the kernel's name, down through partitions, dm, md, LVM, bcache, loops and the like.
block_carriers() {
  local dir path name below=no
  if [[ -z $1 || ! -e $ROOT/sys/class/block/$1 ]]; then
    TROUBLE="$2 is no block device that sysfs knows"
    return 0
  fi
  dir=$(readlink -f "$ROOT/sys/class/block/$1")
  [[ -z ${SEEN[$1]:-} ]] || return 0
  SEEN[$1]=yes
  if [[ -e $dir/partition ]]; then
    dir=${dir%/*}
    block_carriers "${dir##*/}" "$2"
    return 0
  fi
  for path in "$dir"/slaves/*; do
    [[ -e $path ]] || continue
    below=yes
    block_carriers "${path##*/}" "$2"
  done
  for path in "$dir"/bcache/cache/cache[0-9]*; do # a cache of bcache: a link to .../sdb/bcache
    [[ -e $path ]] || continue
    path=$(readlink -f "$path")
    path=${path%/*}
    below=yes
    block_carriers "${path##*/}" "$2"
  done
  [[ $below == no ]] || return 0
  case ${dir#"$ROOT"} in
    */virtual/nvme-subsystem/*) # one disk behind several controllers
      for path in "${dir%/*}"/nvme[0-9]*; do
        [[ ! -L $path ]] || carriers_in "$(readlink -f "$path")" || fabric_carriers "${path##*/}"
      done
      ;;
    */virtual/block/loop*)
      name=$(cat "$dir/loop/backing_file" 2>/dev/null) || name=''
      if [[ $name == /* ]]; then path_carriers "$name"; else TROUBLE="$1 is a loop over a file that isn't known"; fi
      ;;
    */virtual/block/zd*)
      name=$(find "$ROOT/dev/zvol" -lname "*/$1" -print -quit 2>/dev/null) || name=''
      name=${name#"$ROOT/dev/zvol/"}
      if [[ -n $name ]]; then pool_carriers "${name%%/*}"; else TROUBLE="nothing says which ZFS pool $1 is on"; fi
      ;;
    */virtual/block/zram* | */virtual/block/ram[0-9]*) ;; # memory
    */virtual/nvme-fabrics/*) [[ ! $dir =~ /(nvme[0-9]+)/ ]] || fabric_carriers "${BASH_REMATCH[1]}" ;;
    # Their other ends are nowhere in sysfs.
    */virtual/block/nbd* | */virtual/block/drbd* | */rbd/* | */rbd[0-9]*) every_network ;;
    */virtual/*) TROUBLE="nothing says what $1 is on" ;;
    # Without a PCI function on the way: iSCSI through the network, or a disk that is no PCI device at all.
    *) carriers_in "$dir" || [[ ! $dir =~ /session([0-9]+)/ ]] || iscsi_carriers "${BASH_REMATCH[1]}" ;;
  esac
}

iscsi_carriers() { # NUMBER OF A SESSION
  local text
  text=$(cat "$ROOT/sys/class/iscsi_connection/connection$1:"*/{persistent_address,address} 2>/dev/null) || :
  # shellcheck disable=SC2046 # addresses hold no spaces
  network_carriers $(addresses_in "$text")
}

fabric_carriers() { # NAME OF A CONTROLLER - of NVMe over a network: `traddr=10.0.0.9,trsvcid=4420`
  local text
  text=$(cat "$ROOT/sys/class/nvme/$1/address" 2>/dev/null) || text=''
  text=$(addresses_in "${text//traddr=/addr=}")
  if [[ -n $text ]]; then
    # shellcheck disable=SC2086 # addresses hold no spaces
    network_carriers $text
  else
    every_network
  fi
}

# every_network - where nothing says which way data takes: each interface that has an address.
every_network() {
  local name
  network_carriers
  while read -r name; do
    [[ $name == lo ]] || interface_carriers "$name"
  done < <(within "$ASK_SECONDS" ip -o addr show 2>/dev/null | awk '{ sub(/@.*/, "", $2); print $2 }' | sort -u)
}

pool_carriers() { # NAME OF A ZFS POOL
  local device type found=no
  while read -r device _; do
    [[ $device == /dev/* ]] || continue
    found=yes
    device_carriers "$device"
  done < <(within "$ASK_SECONDS" zpool status -LP "$1" 2>/dev/null)
  [[ $found == no ]] || return 0
  # Without an answer: every disk that is a member of any pool.
  while read -r device type _; do
    [[ $type == zfs_member ]] || continue
    found=yes
    block_carriers "$device" "/dev/$device"
  done < <(within "$ASK_SECONDS" lsblk -nro NAME,FSTYPE 2>/dev/null)
  [[ $found == yes ]] || TROUBLE="nothing says which disks the ZFS pool $1 is on"
}

# carriers_in PATH - the PCI functions that a path in sysfs goes through; fails where there is none.
carriers_in() {
  local part parts found=1
  IFS=/ read -ra parts <<<"$1"
  for part in "${parts[@]}"; do
    [[ $part =~ ^[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$ ]] || continue
    CARRIERS[$part]=yes
    found=0
  done
  return "$found"
}

# -- the network -------------------------------------------------------------------------------------------------------------
vital_network() {
  local names
  names=$(reached_over | sort -u)
  network_carriers
  ((${#CARRIERS[@]})) || [[ -n $TROUBLE ]] || TROUBLE="no network card is known behind ${names//$'\n'/, }"
  vital_entry network "the network over which this host is reached (${names//$'\n'/, })"
}

# addresses_in TEXT - the IP addresses that an option or a source of a mount, or a line of sysfs, has.
addresses_in() { grep -oE '[0-9]{1,3}(\.[0-9]{1,3}){3}|(^|addr=)[0-9a-f]*:[0-9a-f:]+' <<<"$1" | sed 's/^addr=//' | sort -u || :; }

# network_carriers [ADDRESS...] - also on the way to these, which may be another one, as of a network for storage alone.
network_carriers() {
  local name found=no
  while read -r name; do
    [[ -n $name ]] || continue
    found=yes
    interface_carriers "$name"
  done < <({ reached_over && ways_to "$@"; } | sort -u)
  [[ $found == yes ]] || TROUBLE="no interface has a default route or this connection"
}

ways_to() { # ADDRESS... - the interface of each, one a line
  local address
  for address in "$@"; do
    within "$ASK_SECONDS" ip -o route get "$address" 2>/dev/null | sed -nE 's/.* dev ([^ ]+).*/\1/p' || :
  done
}

# reached_over - the interfaces of this connection and of the default routes, one a line.
reached_over() {
  local connection client server name destination rest
  if connection=$(ssh_connection) && [[ -n $connection ]]; then
    read -r client _ server _ <<<"$connection"
    client=${client#::ffff:} server=${server#::ffff:}
    ways_to "${client%%%*}"
    within "$ASK_SECONDS" ip -o addr show 2>/dev/null | awk -v address="${server%%%*}" '{ split($4, part, "/") } part[1] == address { print $2 }' || :
  fi
  if [[ -r $ROOT/proc/net/route ]]; then
    while read -r name destination rest; do
      [[ $destination != 00000000 ]] || printf '%s\n' "$name"
    done <"$ROOT/proc/net/route"
  fi
  if [[ -r $ROOT/proc/net/ipv6_route ]]; then
    while read -r destination rest; do
      name=${rest##* }
      [[ $destination != "${destination//[!0]/}" || ${rest%% *} != 00 || $name == lo ]] || printf '%s\n' "$name"
    done <"$ROOT/proc/net/ipv6_route"
  fi
}

# interface_carriers NAME - down through bridges, bonds, VLANs and Open vSwitch.
interface_carriers() {
  local dir=$ROOT/sys/class/net/$1 real lower name below=no
  [[ -e $dir && -z ${SEEN[$1]:-} ]] || return 0 # no disk has the name of an interface
  SEEN[$1]=yes
  real=$(readlink -f "$dir")
  if carriers_in "$real"; then
    # Without its physical function, a virtual one is gone as well.
    if [[ -L $real/device/physfn ]]; then carriers_in "$(readlink -f "$real/device/physfn")" || :; fi
    return 0
  fi
  for lower in "$dir"/lower_* "$dir"/brif/*; do
    [[ -e $lower ]] || continue
    below=yes
    name=${lower##*/}
    interface_carriers "${name#lower_}"
  done
  if [[ -r $dir/bonding/slaves ]]; then
    for name in $(<"$dir/bonding/slaves"); do
      below=yes
      interface_carriers "$name"
    done
  fi
  [[ $below == no && -e $ROOT/sys/class/net/ovs-system ]] || return 0
  # Open vSwitch shows no ports in sysfs: every interface that it has.
  for lower in "$ROOT"/sys/class/net/*/master; do
    [[ -L $lower && $(readlink "$lower") == */ovs-system ]] || continue
    lower=${lower%/master}
    interface_carriers "${lower##*/}"
  done
}

# -- keyboards ---------------------------------------------------------------------------------------------------------------
vital_keyboards() {
  local path name
  [[ -r $ROOT/proc/bus/input/devices ]] || return 0
  # A keyboard has the handlers kbd and sysrq; a power button has the first alone. Virtual ones are nobody's.
  while IFS='|' read -r path name; do
    [[ $path != */virtual/* ]] || continue
    carriers_in "$path" || : # one at a port of its own (PS/2) stays
    vital_entry keyboard "$name"
  done < <(awk '
    /^N: Name=/ { name = $0; sub(/^N: Name="/, "", name); sub(/"$/, "", name) }
    /^S: Sysfs=/ { path = substr($0, 10) }
    /^H: Handlers=/ && / kbd/ && /sysrq/ { print path "|" name }' "$ROOT/proc/bus/input/devices")
}

# -- who has a card open -----------------------------------------------------------------------------------------------------
holders() {
  local folder node link name file fb separator='' pid address
  declare -A cards=() opened=()
  for file in "$ROOT"/proc/driver/nvidia/gpus/*/information; do
    [[ -r $file ]] || continue
    name=$(sed -nE 's/^Device Minor:[[:space:]]*([0-9]+).*/\1/p' "$file")
    file=${file%/information}
    cards[nvidia$name]=${file##*/}
  done
  for link in "$ROOT"/sys/class/drm/card[0-9]* "$ROOT"/sys/class/drm/renderD[0-9]*; do
    [[ -e $link/dev || -e $link/device ]] || continue
    name=$(deepest_function "$(readlink -f "$link")")
    [[ -z $name ]] || cards[${link##*/}]=$name
  done
  while IFS=' ' read -r folder node; do
    pid=${folder%/fd} pid=${pid##*/}
    address=${cards[${node##*/}]:-}
    [[ -n $address && $pid != "$$" && " ${opened[$pid]:-} " != *" $address "* ]] || continue
    opened[$pid]+="${opened[$pid]:+ }$address"
  done < <(find "$ROOT"/proc/[0-9]*/fd -maxdepth 1 \( -lname '/dev/nvidia[0-9]*' -o -lname '/dev/dri/*' \) -printf '%h %l\n' 2>/dev/null)
  printf ',"holders":['
  for pid in "${!opened[@]}"; do
    name=$(cat "$ROOT/proc/$pid/comm" 2>/dev/null) || continue # it has ended meanwhile
    # shellcheck disable=SC2086 # addresses hold no spaces
    printf '%s{"pid":%s,"name":%s,"devices":%s}' "$separator" "$pid" "$(json_string "$name")" "$(json_list ${opened[$pid]})"
    separator=,
  done
  if grep -qs 1 "$ROOT"/sys/class/vtconsole/vtcon1/bind; then
    for fb in "$ROOT"/sys/class/graphics/fb[0-9]*; do
      [[ -e $fb ]] || continue
      address=$(deepest_function "$(readlink -f "$fb")")
      [[ -n $address ]] || continue
      printf '%s{"pid":0,"name":"the text console (%s)","devices":["%s"]}' "$separator" "${fb##*/}" "$address"
      separator=,
    done
  fi
  printf ']'
}

deepest_function() { # PATH in sysfs - the last PCI function on it
  [[ ! $1 =~ .*/([0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])(/|$) ]] || printf '%s' "${BASH_REMATCH[1]}"
}
