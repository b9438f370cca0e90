#!/usr/bin/env bash
# Words on the kernel command line of the next boot, and a second boot entry without them.
# Needs: boot, cluster, switch/arm, words
#
# Arguments: NAME (iommu | vfio), WORDS (separated by spaces; may be empty), ENTRY (yes | no: the second boot entry),
#   ENTRY_GRUB and ENTRY_SYSTEMD_BOOT (the scripts that make it), NOTICE (what to tell on revert), ROLLBACK_AFTER and ROLLBACK (of the
#   dead man's switch, lib/switch.sh, which `apply` arms before its first change).
# Changes: GRUB: /etc/default/grub.d/zz-homelab-NAME.cfg, /etc/grub.d/12_homelab; systemd-boot: the end of the first line of
#   /etc/kernel/cmdline, /etc/kernel/{postinst,postrm}.d/zzz-homelab; then the generated boot configuration.
# Words that are there already, from others, are left to them. Undone by `revert`, byte for byte.
# Answer of `apply`: {"loader","added":[words],"changed":"yes|no"}.
# Verbs: apply, revert, plan (what `apply` would change, as files.sh answers it).

apply() {
  take_lock
  FOLLOWED_BY=boot
  BEFORE_WRITE=arm
  need_boot_loader
  write_missing
  find_configured
  has_words "$CONFIGURED" "${WANTED[@]}" || die "'$WORDS' on the kernel command line" \
    "'$CONFIGURED'" "something that is read after this program's file removes it again; nothing was changed" \
    "look into /etc/default/grub and what sorts after zz-homelab in /etc/default/grub.d"
  if is_generated_anew; then
    regenerate
  fi
  finish
  printf '{"loader":"%s","added":%s,"changed":"%s"}\n' "$LOADER" "$(json_list "${MISSING[@]}")" "$CHANGED"
}

plan() {
  PLANNING=yes
  need_boot_loader
  write_missing
  if is_generated_anew; then
    note_boot_config
  fi
  answer_planned
}

# write_missing - of the WANTED words those that nobody else has configured: MISSING.
write_missing() {
  local word
  read -ra WANTED <<<"$WORDS"
  MISSING=()
  find_configured others
  for word in "${WANTED[@]}"; do
    has_words "$CONFIGURED" "$word" || MISSING+=("$word")
  done
  write_words "${MISSING[@]}"
}

# is_generated_anew - what was written isn't in what the next boot reads, or that can't be told.
is_generated_anew() { [[ $CHANGED == yes ]] || is_pending boot || ! generated "${WANTED[@]}"; }

revert() {
  take_lock
  FOLLOWED_BY=boot
  need_boot_loader
  ENTRY=no
  write_words
  if [[ $CHANGED == yes ]] || is_pending boot; then
    regenerate
    log "note: $NOTICE"
  fi
  finish_initramfs
  remove_file /var/lib/homelab/wanted-boot
  finish # whatever becomes of the cluster
  give_turn_back
  disarm_when_given_back
  finish
  printf '{"changed":"%s"}\n' "$CHANGED"
}

write_words() {
  local text="$*" entry=no
  [[ $ENTRY != yes || -z $text ]] || entry=yes
  if [[ $LOADER == systemd-boot ]]; then
    edit_kernel_cmdline "$NAME" "$text"
    file_of_ours "$entry" /etc/kernel/postinst.d/zzz-homelab 0755 "$ENTRY_SYSTEMD_BOOT"
    file_of_ours "$entry" /etc/kernel/postrm.d/zzz-homelab 0755 "$ENTRY_SYSTEMD_BOOT"
    return
  fi
  file_of_ours "${text:+yes}" "/etc/default/grub.d/zz-homelab-$NAME.cfg" 0644 "# Written by homelab, which takes it away again (pulumi destroy).
GRUB_CMDLINE_LINUX_DEFAULT=\"\$GRUB_CMDLINE_LINUX_DEFAULT $text\"
export HOMELAB_WORDS=\"\${HOMELAB_WORDS:-} $text\""
  file_of_ours "$entry" /etc/grub.d/12_homelab 0755 "$ENTRY_GRUB"
}

file_of_ours() { # yes|no PATH MODE CONTENT
  if [[ $1 == yes ]]; then
    put_file "$NAME" "$2" "$3" "$4"
  else
    drop_file "$NAME" "$2"
  fi
}

# generated WORD... - does the generated configuration have them? Where ESPs hold it, `pending boot` must do, and a boot since then without them.
generated() {
  if has_managed_esps; then
    [[ ! -e $STATE/armed || $(switch_note armed boot) == "$(boot_id)" ]] || ! is_another_boot
  else
    find_generated
    has_words "$GENERATED" "$@"
  fi
}

regenerate() {
  local output
  begin_step boot
  if ! generate_all; then
    output=$OUTPUT
    undo # first the files, then once more what is made of them: a half-generated configuration must not stay
    if generate_all; then
      done_with boot
    else
      log "note: the boot configuration could not be generated from the old files either: the next run tries that again"
    fi
    die "the boot configuration generated anew" "${output:-no output}" \
      "the next boot would not have what was configured; this step's files are as they were before (earlier steps stay, in the stack too)" \
      "correct what the message names (often: a full /boot or ESP), then run \`pulumi up\` again"
  fi
  done_with boot
}

generate_all() { generate_boot_config && second_entries; }

# second_entries - systemd-boot's second entries: made by the hook; removed by its text when the hook is gone.
second_entries() {
  local hook=$ROOT/etc/kernel/postinst.d/zzz-homelab
  [[ $LOADER == systemd-boot ]] || return 0
  if [[ -x $hook ]]; then
    DOING="boot entries" run_logged "$hook"
  else
    DOING="boot entries" run_logged bash -c "$ENTRY_SYSTEMD_BOOT" zzz-homelab remove
  fi
}

# finish_initramfs - of a run of layers/initramfs.py that was cut short, or could not make them from the old files either: where nothing of
# ours is in them any more, nobody else may come to make them anew.
finish_initramfs() {
  is_pending initramfs && [[ ! -e $STATE/files/vfio/etc/initramfs-tools/scripts/init-top/homelab-vfio ]] || return 0
  make_initramfs || log "note: the initramfs of an earlier run could not be made anew: $OUTPUT"
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
