#!/usr/bin/env bash
# Our words on the next boot's command line, and out of it where nothing can be generated: by the second boot entry, or by hand.
# Needs: switch
#
# Gives: our_words, runs_with_our_words; is_next_boot_another; has_second_entry, choose_second_entry, drop_second_entries;
#   take_words_out. Variables: LOADER, ENTRY_SYSTEMD_BOOT.

# our_words - those that we put on the command line, as they were noted when the roll-back began or are recorded still.
our_words() {
  local word found=''
  for word in $(switch_note rolling-back words) $(words_of_ours) $(grep -oE 'homelab\.vfio=[^[:space:]]*' "$ROOT/proc/cmdline"); do
    [[ " $found " == *" $word "* ]] || found+="${found:+ }$word"
  done
  printf '%s' "$found"
}

runs_with_our_words() {
  local word running
  running=$(<"$ROOT/proc/cmdline")
  find_configured others
  for word in $(our_words); do
    ! has_words "$running" "$word" || has_words "$CONFIGURED" "$word" || return 0
  done
  return 1
}

# is_next_boot_another - for GRUB without ESPs of Proxmox VE's, which can be read: does its menu lack a word that this boot has from us?
is_next_boot_another() {
  local word running
  ! has_managed_esps || return 1
  running=$(<"$ROOT/proc/cmdline")
  find_generated
  [[ -n $GENERATED ]] || return 1
  for word in $(our_words); do
    ! has_words "$running" "$word" || has_words "$GENERATED" "$word" || return 0
  done
  return 1
}

# has_second_entry - is there one to choose? With systemd-boot's hook there is; GRUB's was found.
has_second_entry() { [[ $LOADER != systemd-boot || -e $ROOT/etc/kernel/postinst.d/zzz-homelab ]]; }

choose_second_entry() {
  local entry
  if [[ $LOADER == systemd-boot ]]; then
    bootctl set-oneshot "homelab-without-gpu-$(uname -r).conf"
    return
  fi
  if has_managed_esps; then return 1; fi # there GRUB reads another environment
  entry=$(sed -nE "s/^menuentry .*'(homelab-without-gpu-[^']*)'.*/\1/p" "$ROOT/boot/grub/grub.cfg" | head -n 1)
  [[ -n $entry ]]
  grub-reboot "$entry"
}

# drop_second_entries - systemd-boot's. GRUB's went with its configuration.
drop_second_entries() {
  [[ $LOADER != systemd-boot ]] || run_logged bash -c "$ENTRY_SYSTEMD_BOOT" zzz-homelab remove
}

# take_words_out - fails where there was nothing to take, too: the next boot is no other one then.
take_words_out() {
  local words uuid esp failed=0 TAKEN=no
  read -ra words <<<"$(our_words)"
  ((${#words[@]} > 0)) || return 1
  if ! has_managed_esps; then
    take_words_out_of "$ROOT/boot/grub/grub.cfg" && [[ $TAKEN == yes ]]
    return
  fi
  while read -r uuid || [[ -n $uuid ]]; do
    [[ -n $uuid && -e $ROOT/dev/disk/by-uuid/$uuid ]] || continue
    esp=$(mktemp -d "$ROOT/run/homelab-esp.XXXXXX")
    if mount "$ROOT/dev/disk/by-uuid/$uuid" "$esp"; then
      take_words_out_of "$esp/grub/grub.cfg" "$esp"/loader/entries/proxmox-*.conf || failed=1
      umount "$esp" || failed=1
    else
      failed=1
    fi
    rmdir "$esp" || failed=1
  done <"$ROOT/etc/kernel/proxmox-boot-uuids"
  ((failed == 0)) || log "this program's words could not be taken out of every ESP"
  [[ $TAKEN == yes ]]
}

# take_words_out_of FILE... - out of the lines that give a kernel its command line. Its caller's words.
take_words_out_of() {
  local file line left text changed
  for file; do
    [[ -e $file ]] || continue
    text='' changed=no
    while IFS= read -r line || [[ -n $line ]]; do
      left=$line
      [[ ! $line =~ ^[[:space:]]*(linux|linuxefi|options)[[:space:]] ]] || left=$(without_words "$line" "${words[@]}")
      [[ $left == "$line" ]] || changed=yes
      text+=$left$'\n'
    done <"$file"
    [[ $changed == yes ]] || continue
    # Its own mode; beside it, so that a full disk leaves the old one.
    if ! { cp -aT "$file" "${file%/*}/.homelab-tmp" && printf '%s' "$text" >"${file%/*}/.homelab-tmp" &&
      sync "${file%/*}/.homelab-tmp" && mv -fT "${file%/*}/.homelab-tmp" "$file"; }; then
      rm -f "${file%/*}/.homelab-tmp"
      return 1
    fi
    TAKEN=yes
  done
}
