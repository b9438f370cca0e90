#!/usr/bin/env bash
# Which boot loader makes the kernel command line of the next boot, and how its configuration and the initramfs are generated.
# Facts: Proxmox VE boots with GRUB (/etc/default/grub, update-grub) or systemd-boot (first line of /etc/kernel/cmdline);
# ESPs listed in /etc/kernel/proxmox-boot-uuids are written by `proxmox-boot-tool refresh`, with either loader.
# Needs: files
#
# Gives: find_boot_loader -> LOADER, LOADER_CLUES, BOOT_STATUS; need_boot_loader, is_configurable, has_managed_esps;
#   generate_boot_config -> OUTPUT, note_boot_config; kernels, make_initramfs -> OUTPUT, clear_half_made, find_stale -> STALE; measure_boot ->
#   BOOT_FREE, LARGEST_INITRAMFS.

has_managed_esps() {
  local TEXT
  read_text "$ROOT/etc/kernel/proxmox-boot-uuids"
  [[ $TEXT == *[![:space:]]* ]]
}

managed_esps() { grep -c '[^[:space:]]' "$ROOT/etc/kernel/proxmox-boot-uuids"; }

# find_boot_loader - sets LOADER to grub or systemd-boot; to '' and LOADER_CLUES where that can't be told; BOOT_STATUS to what
# proxmox-boot-tool says of the ESPs.
find_boot_loader() {
  local info=$ROOT/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f name='' kinds=''
  LOADER='' LOADER_CLUES='' BOOT_STATUS=''
  ! has_managed_esps || BOOT_STATUS=$(exec_within "$ASK_SECONDS" proxmox-boot-tool status 2>&1) || :
  if [[ ! -d $ROOT/sys/firmware/efi ]]; then
    LOADER=grub # legacy BIOS: Proxmox VE has GRUB only
    return
  fi
  # The boot loader says its own name in an EFI variable: 4 attribute bytes, then UTF-16. GRUB does so from 2.12 on. It is read from
  # its beginning: there is no seeking in these files, and `tail -c +5` gives up.
  [[ ! -r $info ]] || name=$(tr -cd '[:print:]' <"$info")
  ! has_managed_esps || find_kinds
  LOADER_CLUES="LoaderInfo '${name:-not set}', proxmox-boot-tool '${kinds:-no ESP}'"
  case $name:$kinds in
    systemd-boot*:uefi | systemd-boot*:grubuefi | :uefi) LOADER=systemd-boot ;;
    systemd-boot*) ;; # without proxmox-boot-tool's ESPs nothing here would generate its entries
    GRUB* | :grub) LOADER=grub ;;
    :) [[ ! -e $ROOT/boot/grub/grub.cfg ]] || LOADER=grub ;;
  esac
}

# find_kinds - of find_boot_loader, sets `kinds`: which of grub and uefi any ESP is written for, by BOOT_STATUS.
find_kinds() {
  local line grub='' uefi=''
  while IFS= read -r line; do
    [[ $line =~ ^[^\ ]*\ is\ configured\ with:\ (.*) ]] || continue
    line=${BASH_REMATCH[1]}
    [[ $line != *'grub ('* ]] || grub=grub
    [[ $line != *'uefi ('* ]] || uefi=uefi
  done <<<"$BOOT_STATUS"
  kinds=$grub$uefi
}

# is_configurable - can the kernel command line of the next boot be told, and changed? After find_boot_loader.
is_configurable() { [[ $LOADER == grub || ($LOADER == systemd-boot && -f $ROOT/etc/kernel/cmdline) ]]; }

need_boot_loader() {
  find_boot_loader
  [[ -n $LOADER ]] || die "to know which boot loader makes the kernel command line: GRUB, or systemd-boot with proxmox-boot-tool" \
    "$LOADER_CLUES" "the wrong one would be configured without effect" \
    "see \`proxmox-boot-tool status\`; remove from /etc/kernel/proxmox-boot-uuids the UUID of each ESP that the host no longer starts from, and run \`pulumi up\` again"
  is_configurable || die "/etc/kernel/cmdline, from which systemd-boot's entries are made" \
    "no such file" "without it proxmox-boot-tool copies the running command line" \
    "write the command line you want into /etc/kernel/cmdline (one line, with root=), then \`proxmox-boot-tool refresh\`"
}

# generate_boot_config - makes what was configured what the next boot uses.
generate_boot_config() {
  local menu=/boot/grub/grub.cfg old=''
  if has_managed_esps; then
    log "writing the boot entries on $(managed_esps) ESP(s)"
    DOING="boot entries" run_logged proxmox-boot-tool refresh
    return
  fi
  # update-grub may end well with a menu without a kernel, when a command that its scripts call is broken: that host would never start
  # again. The menu from before comes back then.
  if starts_kernels "$ROOT$menu"; then
    old=$STATE/.grub.cfg.homelab-tmp
    if ! need_dir "$STATE" || ! cp -aT "$ROOT$menu" "$old"; then # a full disk
      rm -f "$old"
      old=''
    fi
  fi
  log "making the boot menu (update-grub)"
  if ! DOING="boot menu" run_logged update-grub; then
    rm -f "$old"
    return 1
  fi
  if [[ -n $old ]] && ! starts_kernels "$ROOT$menu"; then
    OUTPUT="update-grub has made a menu without any kernel; the one from before is back"
    if copy_atomically "$old" "$menu"; then
      rm -f "$old"
    else
      OUTPUT="update-grub has made a menu without any kernel, and the one from before could not be put back: do not restart this host before \`update-grub\` has made a whole one"
    fi
    return 1
  fi
  rm -f "$old"
}

# starts_kernels FILE - has GRUB's menu an entry with a kernel?
starts_kernels() { grep -qsE '^[[:space:]]*linux(efi)?[[:space:]]' "$1"; }

# note_boot_config - the same, only planned.
note_boot_config() {
  if has_managed_esps; then
    note_planned made "the boot entries on $(managed_esps) ESP(s)"
  else
    note_planned made /boot/grub/grub.cfg
  fi
}

# clear_half_made - initramfs that something was cut short in writing: update-initramfs gives them their names only when they are whole.
# They take the room that new ones need.
clear_half_made() {
  compgen -G "$ROOT/boot/initrd.img-*.new" >/dev/null || return 0
  # Somebody else's may be at work: the kernel knows a process by the first 15 letters of its name.
  ! grep -qsxE 'update-initramf|mkinitramfs' "$ROOT"/proc/[0-9]*/comm || return 0
  rm -f "$ROOT"/boot/initrd.img-*.new
}

# kernels - how many are installed.
kernels() {
  local kernel_files=("$ROOT"/boot/vmlinuz-*)
  [[ -e ${kernel_files[0]} || -L ${kernel_files[0]} ]] || kernel_files=()
  printf '%s' "${#kernel_files[@]}"
}

# make_initramfs - anew, for every kernel. Fails, with OUTPUT, where one could not be; then they are still to be made.
make_initramfs() {
  clear_half_made
  log "making the initramfs of $(kernels) kernel(s)"
  DOING="update-initramfs" run_logged update-initramfs -u -k all && done_with initramfs
}

# find_stale - sets STALE: kernels whose initramfs is older than our script for it, or missing, or empty, as a power cut can leave it.
find_stale() {
  local image version script=$ROOT/etc/initramfs-tools/scripts/init-top/homelab-vfio
  STALE=()
  [[ -e $script ]] || return 0
  for image in "$ROOT"/boot/vmlinuz-*; do
    version=${image##*/vmlinuz-}
    [[ ! -e $image || (-s $ROOT/boot/initrd.img-$version && $ROOT/boot/initrd.img-$version -nt $script) ]] || STALE+=("$version")
  done
}

# measure_boot - sets BOOT_FREE (room on /boot) and LARGEST_INITRAMFS, in bytes.
measure_boot() {
  local file size sizes images=()
  LARGEST_INITRAMFS=0
  for file in "$ROOT"/boot/initrd.img-*; do [[ ! -e $file ]] || images+=("$file"); done
  if ((${#images[@]} > 0)); then
    sizes=$(stat -c %s "${images[@]}")
    for size in $sizes; do ((size <= LARGEST_INITRAMFS)) || LARGEST_INITRAMFS=$size; done
  fi
  find_free /boot
  BOOT_FREE=${FREE:-0}
}
