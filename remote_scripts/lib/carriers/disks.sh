#!/usr/bin/env bash
# Down from a block device to PCI functions: through partitions, dm, md, LVM, btrfs, ZFS, bcache, loops, and over networks.
# Needs: carriers/found, carriers/network, links
#
# Gives: device_carriers PATH [MOUNT POINT], block_carriers NAME PATH, pool_carriers POOL -> CARRIERS, TROUBLE. Takes path_carriers of
#   carriers/storage.sh, for a loop over a file.

# device_carriers PATH [MOUNT POINT] - of a device in /dev.
device_carriers() {
  local real name number sibling
  if [[ $1 == /dev/zvol/* ]]; then
    real=${1#/dev/zvol/}
    pool_carriers "${real%%/*}"
    return 0
  fi
  if [[ -e $ROOT$1 && ! -L $ROOT$1 ]]; then real=$1; else real=$(readlink -f "$ROOT$1") || real=''; fi
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
  find_folder "$ROOT/sys/class/block/$1" || FOLDER=''
  dir=$FOLDER
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
        [[ ! -L $path ]] || carriers_in "$(readlink -f "$path")" || other_end_carriers "$(of_file "$ROOT/sys/class/nvme/${path##*/}/address")"
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
    */virtual/nvme-fabrics/*) [[ ! $dir =~ /(nvme[0-9]+)/ ]] || other_end_carriers "$(of_file "$ROOT/sys/class/nvme/${BASH_REMATCH[1]}/address")" ;;
    # Their other ends are nowhere in sysfs.
    */virtual/block/nbd* | */virtual/block/drbd* | */rbd/* | */rbd[0-9]*) every_network ;;
    */virtual/*) TROUBLE="nothing says what $1 is on" ;;
    # Without a PCI function on the way: iSCSI through the network, or a disk that is no PCI device at all.
    *) carriers_in "$dir" || [[ ! $dir =~ /session([0-9]+)/ ]] || other_end_carriers "$(cat "$ROOT/sys/class/iscsi_connection/connection${BASH_REMATCH[1]}:"*/{persistent_address,address} 2>/dev/null)" ;;
  esac
}

pool_carriers() { # NAME OF A ZFS POOL
  local device type found=no text whole=yes
  text=$(exec_within "$ASK_SECONDS" zpool status -LP "$1" 2>/dev/null) || whole=no
  while read -r device _; do
    [[ $device == /dev/* ]] || continue
    found=yes
    device_carriers "$device"
  done <<<"$text"
  [[ $found == no || $whole == no ]] || return 0
  # Without an answer, or with a part of one: every disk that is a member of any pool.
  text=$(exec_within "$ASK_SECONDS" lsblk -nro NAME,FSTYPE 2>/dev/null) || TROUBLE="neither zpool nor lsblk says which disks the ZFS pool $1 is on"
  while read -r device type _; do
    [[ $type == zfs_member ]] || continue
    found=yes
    block_carriers "$device" "/dev/$device"
  done <<<"$text"
  [[ $found == yes ]] || TROUBLE="nothing says which disks the ZFS pool $1 is on"
}

# other_end_carriers TEXT - what sysfs says of the other end of a disk that comes over a network (`traddr=10.0.0.9,trsvcid=4420`).
other_end_carriers() {
  local addresses
  addresses=$(addresses_in "$1")
  if [[ -n $addresses ]]; then
    # shellcheck disable=SC2086 # addresses hold no spaces
    network_carriers $addresses
  else
    every_network
  fi
}
