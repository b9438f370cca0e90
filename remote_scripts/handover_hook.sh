#!/usr/bin/env bash
# The hookscript of a VM that may take a card from this host's containers. Proxmox VE lets root@pam itself set it, and no token.
# Needs: files, handover/rest
#
# Arguments: VMID, HOLDER (which entry of the settings wants it: the last that applied is the only one that takes it away), GENERATION (no part in
#   what happens).
# Changes: the VM's option hookscript, where it has none, or ours by a storage that hasn't the script any more. Undone by `revert`, where it still is ours.
# Verbs: apply, revert, plan (what `apply` would change, as files.sh answers it).

apply() {
  local volume=''
  take_lock
  if ! has_hook "$VMID"; then
    is_our_hook "$VMID" || need_hookless
    find_snippets
    volume=$STORAGE:snippets/$HOOK_FILE
    [[ -x $ROOT$SNIPPETS/$HOOK_FILE ]] || die "VM $VMID with the hookscript $volume" "there is no $SNIPPETS/$HOOK_FILE" \
      "a VM that names a hookscript which isn't there doesn't start; the storages have changed since it was written" "run \`pulumi up --refresh\`, which writes it"
  fi
  # Before it has it: by that it is known that the VM is to have it.
  note_holder
  if [[ -n $volume ]]; then
    run_logged qm set "$VMID" --hookscript "$volume" || die "VM $VMID with the hookscript $volume" "$OUTPUT" \
      "without it the VM would not get the card from the containers" "correct what qm says, then run \`pulumi up\` again"
    CHANGED=yes
  fi
  finish
  printf '{"changed":"%s"}\n' "$CHANGED"
}

note_holder() {
  [[ ! -e $ROOT$HOOKED/$VMID || $(cat "$ROOT$HOOKED/$VMID") != "$HOLDER" ]] || return 0
  need_dir "$ROOT$HOOKED"
  write_atomically "$HOOKED/$VMID" 0600 printf '%s\n' "$HOLDER"
}

plan() {
  PLANNING=yes
  is_our_hook "$VMID" || need_hookless
  has_hook "$VMID" || note_planned new "VM $VMID's option hookscript"
  answer_planned
}

revert() {
  local holder
  take_lock
  # An entry that got another name, or adopts what it had made, is undone under the old one after the new one has applied.
  holder=$(cat "$ROOT$HOOKED/$VMID" 2>/dev/null) || holder=''
  if [[ -n $holder && $holder != "${HOLDER:-}" ]]; then
    log "note: VM $VMID keeps its hookscript: another entry of the settings wants it now"
    finish
    printf '{"changed":"no"}\n'
    return 0
  fi
  ! is_our_hook "$VMID" || drop_hook "$VMID"
  tell_elsewhere "$VMID"
  remove_file "$HOOKED/$VMID"
  finish
  printf '{"changed":"%s"}\n' "$CHANGED"
}

need_hookless() {
  [[ -e $ROOT/etc/pve/qemu-server/$VMID.conf ]] || die "VM $VMID, which may take a card from containers" "there is no such VM on this host" \
    "its hookscript hands it the card" "correct vmid, then run \`pulumi up\` again"
  find_hook "$VMID"
  [[ -z $OPTION ]] || die "VM $VMID with the hookscript that hands it its card" "it has one already: $OPTION" \
    "a VM has one hookscript, and what that one does is not known here" \
    "take it out (\`qm set $VMID --delete hookscript\`), or give the VM a card with use: vm; then run \`pulumi up\` again"
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
