#!/usr/bin/env bash
# A card's option ROM: read from the card and from the firmware; kept as a file for QEMU; taken away.
# Needs: files, lock
#
# Arguments: ADDRESS and IDS (of the card's graphics function: its address, its vendor:device), FROM (card: its own ROM, and the firmware's table;
#   firmware: that table alone, and the card isn't touched), MOST (bytes that are read at most), FILE (its name in /usr/share/kvm), ROM (its content,
#   as base64).
# Changes: `read_rom` nothing that stays: while it reads, the card is awake, and its attribute `rom` is 1. `keep` writes /usr/share/kvm/FILE, which
#   `remove` takes away. A file that isn't ours is left alone.
# Verbs: read_rom, keep, remove.

FOLDER=/usr/share/kvm

read_rom() {
  local device=$ROOT/sys/bus/pci/devices/$ADDRESS table=$ROOT/sys/firmware/acpi/tables/VFCT had='' rom='' vfct=''
  take_lock
  [[ -r $device/vendor && "$(<"$device/vendor"):$(<"$device/device")" == "0x${IDS%:*}:0x${IDS#*:}" ]] || die "the ROM of $ADDRESS" \
    "there is no $IDS any more" "another card's ROM would be kept" "run \`pulumi up --refresh\`"
  if [[ $FROM == card && -e $device/rom ]]; then
    # Asleep, a card shows ones. (A run that is killed here leaves it awake until the next boot, and no more.)
    [[ ! -r $device/power/control ]] || had=$(<"$device/power/control")
    [[ $had != auto ]] || printf on >"$device/power/control" || :
    rom=$(base64_of_rom "$device/rom")
    printf 0 >"$device/rom" || :
    [[ $had != auto ]] || printf auto >"$device/power/control" || :
  fi
  [[ ! -r $table ]] || vfct=$(head -c "$MOST" "$table" 2>/dev/null | base64 -w 0) || vfct=''
  printf '{"rom":"%s","vfct":"%s"}\n' "$rom" "$vfct"
}

# base64_of_rom FILE - empty where the kernel reads none: it finds no image there.
base64_of_rom() {
  { printf 1 >"$1"; } 2>/dev/null || return 0
  within 60 head -c "$MOST" "$1" 2>/dev/null | base64 -w 0 || :
}

keep() {
  local temporary
  take_lock
  [[ -d $ROOT$FOLDER ]] || die "$FOLDER, where QEMU looks for ROM files" "there is no such folder" "Proxmox VE's QEMU brings it" \
    "see whether this is a Proxmox VE host, with pve-qemu-kvm"
  if is_there "$FOLDER/$FILE" && [[ ! -e $STATE/files/rom$FOLDER/$FILE ]]; then
    die "the ROM kept as $FOLDER/$FILE" "there is a file of that name, which this program hasn't made" \
      "a VM may need it as it is" "choose another name with --name"
  fi
  temporary=$RUN/rom
  base64 -d <<<"$ROM" >"$temporary"
  put_copy rom "$FOLDER/$FILE" 0644 "$temporary"
  rm -f "$temporary"
  finish
  printf '{"changed":"%s"}\n' "$CHANGED"
}

remove() {
  local users
  take_lock
  users=$(users_of_rom)
  [[ -z $users ]] || die "$FOLDER/$FILE taken away" "VMs that have it: $users" "they would not start without it" \
    "take romfile out of these first"
  drop_file rom "$FOLDER/$FILE"
  finish
  printf '{"changed":"%s"}\n' "$CHANGED"
}

# users_of_rom - ids of the VMs of this host whose configuration names FILE.
users_of_rom() {
  local file found=()
  for file in "$ROOT"/etc/pve/qemu-server/*.conf; do
    [[ ! -r $file ]] || ! grep -qE "^hostpci[0-9]+:.*romfile=${FILE//./\\.}(,|[[:space:]]*\$)" "$file" || found+=("$(basename "$file" .conf)")
  done
  printf '%s' "${found[*]}"
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
