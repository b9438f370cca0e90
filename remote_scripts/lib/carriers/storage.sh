#!/usr/bin/env bash
# Down from file systems and swap to the devices that they are on.
# Needs: carriers/disks, carriers/network, lines, read/text
#
# Gives: vital_storage; path_carriers PATH -> CARRIERS, TROUBLE. Takes vital_entry of carriers.sh.
# What of the file system must be there: these paths, and what is mounted below /boot, /efi and /var/lib/vz.
NEEDED_PATHS=(/ /boot /boot/efi /efi /usr /etc /var /var/lib /var/lib/pve-cluster /var/lib/vz)

vital_storage() {
  local line source target fstype options uuid path taken=' '
  note_unreadable "$ROOT/proc/mounts" "$ROOT/proc/swaps"
  read_lines "$ROOT/proc/mounts"
  ((${#READ_LINES[@]} > 0)) || { TROUBLE="/proc/mounts doesn't say" && vital_entry storage "what is mounted"; }
  for line in "${READ_LINES[@]}"; do
    IFS=' ' read -r source target fstype options _ <<<"$line"
    # Of what is mounted over each other on one path, the last one counts; all of them are named.
    is_needed "$target" && [[ $taken != *" $source:$target "* ]] || continue
    taken+="$source:$target "
    file_system_carriers "$source" "$target" "$fstype" "$options"
    vital_entry storage "$target ($fstype on $source)"
  done
  read_lines "$ROOT/proc/swaps"
  for line in "${READ_LINES[@]}"; do
    read -r path fstype _ <<<"$line"
    [[ $path == /* ]] || continue
    if [[ $fstype == file ]]; then path_carriers "$path"; else device_carriers "$path"; fi
    vital_entry storage "swap on $path"
  done
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
  local line source target fstype options best='' nearest=()
  read_lines "$ROOT/proc/mounts"
  for line in "${READ_LINES[@]}"; do
    IFS=' ' read -r source target fstype options _ <<<"$line"
    if [[ ($1 == "$target" || $target == / || $1 == "$target"/*) && ${#target} -ge ${#best} ]]; then
      best=$target nearest=("$source" "$target" "$fstype" "$options")
    fi
  done
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
