#!/usr/bin/env bash
# What hands a host's cards from its containers to VMs and back: a program, a service and a timer that bring to an end what was left half-way, and the
# hookscript that VMs name.
# Needs: boot_service, files, guests, handover/rest
#
# Arguments: NEEDED (yes | no: is a card handed over here?), PROGRAM (handover_host.sh, composed), UNIT, TIMER, HOOK (the hookscript), GENERATION (no part
#   in what happens).
# Changes: /usr/local/sbin/homelab-handover; homelab-handover.service and .timer, which are enabled; snippets/homelab-handover.sh of a storage of this
#   host. Undone by `revert`, and by `apply` where it isn't needed any more: these, /var/lib/homelab/handover, and the option hookscript of VMs that
#   still name it. Refused while a VM has a card.
# Verbs: apply, revert, plan (what `apply` would change, as files.sh answers it).

apply() {
  local unit
  take_lock
  need_rest
  if [[ $NEEDED != yes ]]; then
    take_away
  else
    write_files
    forget_states others
    for unit in service timer; do
      find_enabled "$unit"
      enable_boot_service "homelab-handover.$unit" "$ENABLED_AS" "a handover that is cut short would stay half-way"
    done
    run_logged systemctl start homelab-handover.timer || log "note: homelab-handover.timer has not started: it does at the next boot"
  fi
  finish
  printf '{"changed":"%s"}\n' "$CHANGED"
}

plan() {
  local unit
  PLANNING=yes
  if [[ $NEEDED == yes ]]; then
    write_files
    for unit in service timer; do
      find_enabled "$unit"
      [[ -L $ROOT$ENABLED_AS ]] || note_planned new "$ENABLED_AS"
    done
  else
    drop_hooks
    drop_files
  fi
  answer_planned
}

write_files() {
  find_snippets
  put_file handover "$INSTALLED" 0755 "$PROGRAM"
  put_file handover /etc/systemd/system/homelab-handover.service 0644 "$UNIT"
  put_file handover /etc/systemd/system/homelab-handover.timer 0644 "$TIMER"
  put_file handover "$SNIPPETS/$HOOK_FILE" 0755 "$HOOK"
}

revert() {
  take_lock
  need_rest
  take_away
  finish
  printf '{"changed":"%s"}\n' "$CHANGED"
}

# forget_states all|others - others: of cards that aren't handed over any more, which the program that is installed would never settle.
forget_states() {
  local file name
  for file in "$ROOT$HANDOVER"/*.state "$ROOT$HANDOVER"/*.turned_away; do
    name=${file##*/} name=${name%.*}
    if [[ ! -e $file ]] || { [[ $1 == others ]] && grep -qE "(^|[='])$name [0-9a-f]{4}:" <<<"$PROGRAM"; }; then continue; fi
    [[ $file != *.state ]] || tell_owed "$file"
    rm -f "$file"
  done
}

# tell_owed FILE - containers that are still to be started again, which nobody sees to without what is noted there.
tell_owed() {
  local ctid ids=() why
  grep -qxF "boot=$(cat "$ROOT/proc/sys/kernel/random/boot_id")" "$1" || return 0
  read -ra ids < <(sed -n 's/^containers=//p' "$1") || :
  why="VM $(sed -n 's/^vm=//p' "$1")"
  for ctid in "${ids[@]}"; do
    [[ -e $ROOT/etc/pve/lxc/$ctid.conf ]] || continue
    find_power pct "$ctid"
    case $POWER_NOW in
      off) log "note: container $ctid was shut down for $why and has not started again ($(sed -n 's/^why=//p' "$1")): once that is mended, \`pct start $ctid\`" ;;
      unknown) log "note: container $ctid was shut down for $why, and whether it has started again is not known ($POWER_SAID): see \`pct status $ctid\`" ;;
    esac
  done
}

take_away() {
  drop_hooks
  [[ ! -e $ROOT/etc/systemd/system/homelab-handover.timer ]] || run_logged systemctl stop homelab-handover.timer || :
  find_enabled timer
  drop_boot_service handover '' homelab-handover.timer "$ENABLED_AS"
  find_enabled service
  drop_boot_service handover "$INSTALLED" homelab-handover.service "$ENABLED_AS"
  drop_files
  forget_states all
  rm -rf "$ROOT$HANDOVER"
}

# drop_hooks - of VMs that aren't the settings', too: a clone, or one that was restored, has brought the name along.
drop_hooks() {
  local file vmid
  for file in "$ROOT"/etc/pve/qemu-server/[1-9]*.conf; do
    vmid=${file##*/} vmid=${vmid%.conf}
    if [[ ! -e $file ]] || ! is_our_hook "$vmid"; then continue; fi
    [[ $PLANNING == no ]] || { note_planned removed "VM $vmid's option hookscript" && continue; }
    drop_hook "$vmid"
  done
  for file in "$ROOT$HOOKED"/[1-9]*; do [[ $PLANNING == yes || ! -e $file ]] || tell_elsewhere "${file##*/}"; done
}

# drop_files - the hookscript last, wherever it was written: a VM that names one which isn't there doesn't start.
drop_files() {
  local path hooks=() FILES TEMPORARY
  find_layer_files handover
  for path in "${FILES[@]}"; do
    if [[ $path == */"$HOOK_FILE" ]]; then hooks+=("$path"); else drop_file handover "$path"; fi
  done
  for path in "${hooks[@]}"; do
    temporary_for "$path"
    rm -f "$TEMPORARY"
    drop_file handover "$path"
  done
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
