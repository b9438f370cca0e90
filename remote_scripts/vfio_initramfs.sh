#!/usr/bin/env bash
# The initramfs part of the binding: a script that gives functions to vfio-pci before any driver is loaded, the modules it
# needs, in the initramfs of every installed kernel. Which functions: the kernel command line says (cmdline.sh).
# Needs: boot, switch/arm
#
# Arguments: NEEDED (yes | no: nothing of ours is bound), INIT_TOP and HOOK (the files' contents), ROLLBACK_AFTER and
#   ROLLBACK (as of cmdline.sh).
# Changes: /etc/initramfs-tools/scripts/init-top/homelab-vfio, /etc/initramfs-tools/hooks/homelab-vfio,
#   /etc/modules-load.d/homelab-vfio.conf, /boot/initrd.img-*. Undone by `revert`.
# Verbs: apply, revert, plan (what `apply` would change, as files.sh answers it).

SCRIPT_PATH=/etc/initramfs-tools/scripts/init-top/homelab-vfio
HOOK_PATH=/etc/initramfs-tools/hooks/homelab-vfio
MODULES_PATH=/etc/modules-load.d/homelab-vfio.conf

apply() {
  BEFORE_WRITE=arm
  change
}

change() {
  take_lock
  FOLLOWED_BY=initramfs
  [[ $NEEDED != yes ]] || check_tools
  clear_half_made
  if [[ $NEEDED == yes ]] && is_made_anew; then check_space; fi
  write_files
  if [[ $CHANGED == yes ]] || is_unfinished; then
    update
  fi
  [[ $NEEDED == yes ]] || disarm_when_given_back
  finish
  printf '{"changed":"%s"}\n' "$CHANGED"
}

revert() {
  NEEDED=no
  change
}

plan() {
  [[ $NEEDED != yes ]] || check_tools
  if is_made_anew; then
    [[ $NEEDED != yes ]] || check_space
    PLANNING=yes
    write_files
    note_planned made "the initramfs of $(kernels) kernel(s)"
  fi
  answer_planned
}

write_files() {
  if [[ $NEEDED == yes ]]; then
    put_file vfio "$HOOK_PATH" 0755 "$HOOK"
    put_file vfio "$SCRIPT_PATH" 0755 "$INIT_TOP"
    put_file vfio "$MODULES_PATH" 0644 "# Written by homelab, which takes it away again (pulumi destroy).
vfio
vfio_iommu_type1
vfio_pci"
  else
    drop_file vfio "$SCRIPT_PATH"
    drop_file vfio "$HOOK_PATH"
    drop_file vfio "$MODULES_PATH"
  fi
}

# is_made_anew - would this run make every initramfs anew? In a subshell: what it notes is nobody's.
is_made_anew() (
  PLANNING=yes
  write_files
  [[ $CHANGED == yes ]] || is_unfinished
) >/dev/null

# is_unfinished - an initramfs that lacks the script, or an earlier run's that was cut short.
is_unfinished() {
  find_stale
  is_pending initramfs || [[ $NEEDED == yes && ${#STALE[@]} != 0 ]]
}

check_tools() {
  if ! command -v update-initramfs >/dev/null || [[ ! -e $ROOT/usr/share/initramfs-tools/hook-functions ]]; then
    die "initramfs-tools, which makes Proxmox VE's initramfs" "no update-initramfs with its hook-functions" \
      "the binding happens in a script that initramfs-tools includes" "apt install initramfs-tools"
  fi
}

# An initramfs is written beside the old one before it takes its place: the largest, plus a tenth, must fit.
check_space() {
  local needed
  measure_boot
  needed=$((LARGEST_INITRAMFS * 11 / 10))
  ((BOOT_FREE >= needed)) || die "room on /boot for a new initramfs ($((needed / 1048576 + 1)) MiB)" \
    "$((BOOT_FREE / 1048576)) MiB free" "update-initramfs would fail half-way and leave kernels without the binding" \
    "remove old kernels (\`apt autoremove --purge\`; \`dpkg -l 'proxmox-kernel-*'\`), then run \`pulumi up\` again"
}

update() {
  local output
  begin_step initramfs
  if ! make_initramfs; then
    output=$OUTPUT
    undo
    if ! make_initramfs; then
      clear_half_made
      log "note: the initramfs could not be made from the old files either: the next run tries that again"
    fi
    die "the initramfs of every installed kernel made anew" "$output" \
      "without it the GPU would not be bound at boot; this step's files are as they were before (earlier steps stay, in the stack too)" \
      "correct what the message says, try \`update-initramfs -u -k all\`, then run \`pulumi up\` again"
  fi
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
