#!/usr/bin/env bash
# What the dead man's switch runs on the host when nobody confirmed a boot: our configuration is taken away, then a reboot.
# The command line first, since it is the one switch; whatever fails after that, the reboot still happens.
#
# Arguments: AFTER (seconds, for the report), ENTRY_SYSTEMD_BOOT.
# Changes: all that cmdline.sh and vfio_initramfs.sh wrote; leaves /var/lib/homelab/rolled-back, which `up` reports.
# Verbs: apply (always).

apply() {
  local layer path
  take_lock
  find_boot_loader
  for layer in vfio iommu; do
    while IFS= read -r path; do
      drop_file "$layer" "$path"
    done < <(layer_files "$layer")
    [[ $LOADER != systemd-boot ]] || edit_kernel_cmdline "$layer" ''
  done
  generate_boot_config || log "the boot configuration could not be generated: $OUTPUT"
  [[ $LOADER != systemd-boot ]] || run_logged bash -c "$ENTRY_SYSTEMD_BOOT" zzz-homelab remove || log "$OUTPUT"
  run_logged update-initramfs -u -k all || log "the initramfs could not be made anew: $OUTPUT"
  done_with boot
  done_with initramfs
  disarm
  finish
  need_dir "$STATE"
  printf 'boot %s was not confirmed within %s s of its start' "$(<"$ROOT/proc/sys/kernel/random/boot_id")" "$AFTER" |
    write_atomically /var/lib/homelab/rolled-back 0600
  systemctl reboot
}

apply </dev/null
exit
