#!/usr/bin/env bash
# A card goes to a VM that starts.
# Needs: handover/state, handover/card, handover/steps, handover/units, handover/numbers, handover/holders, handover/users, handover/refuse, handover/back, handover/settle, handover/turn
#
# Gives: take_card VMID; is_to_be_taken VMID, wait_for_run. Has the lock, and S of the card that was read.

# take_card VMID - status 1: it didn't work, everybody has it as before, or it is in one of the sinks; a person has been told.
take_card() {
  local vmid=$1 why
  if [[ ${S[state]} =~ ^(RETURNING|VM)$ && ${S[vm]:-} == "$vmid" ]]; then
    ! keep_card || return 0
    # This start holds the VM's lock, by which `settle` would take it for one that goes on.
    [[ ${S[state]} != VM ]] || is_elsewhere || S[state]=RETURNING
  fi
  settle
  case ${S[state]} in
    HOST | HELD)
      # Bound at boot by other configuration, such as before `up` has made another use of it: there is nothing to hand over.
      if all_on vfio-pci && is_that_card; then
        say "VM $vmid starts, and the card is on vfio-pci already, not by this program: it stays there"
        return 0
      fi
      ;;
    VM) tell "VM ${S[vm]} has it since $(printf '%(%F %T)T' "${S[since]:-0}")" "shut that VM down first" && return 1 ;;
    *) tell "${S[state]}: ${S[why]:-}" "homelab doctor explains it" && return 1 ;;
  esac
  ! run_at_work "$vmid" || { wait_for_run && return 1; }
  if refused "$vmid"; then
    sink HELD "VM $vmid didn't get it: $REFUSED"
    tell "$REFUSED" "nothing was changed; mend that, and start the VM again"
    return 1
  fi
  drain_card "$vmid" && free_card && detach_card && return 0
  [[ ${S[state]} != STUCK ]] || { tell "${S[why]}" "reboot the host when it suits you; its containers stay off until then" && return 1; }
  why=$REFUSED
  give_back "VM $vmid didn't get it: $why"
  tell "$why" "what was stopped is started again ($HANDOVER/log); end what has the card, and start the VM again"
  return 1
}

tell() { message "gpus.$CARD for VM $vmid, which starts" "$1" "a card that is still in use makes NVIDIA's driver wait for ever, so it is taken only when nothing uses it" "$2"; }

# is_to_be_taken VMID - does the VM name the card, and hasn't it yet? Then it waits for a run.
is_to_be_taken() { [[ ${S[vm]:-} != "$1" || ! ${S[state]} =~ ^(VM|RETURNING)$ ]] && names_card "$1"; }

# wait_for_run - says that VM `vmid` has to.
wait_for_run() {
  say "VM $vmid doesn't get it: an up or a destroy of this host is at work ($AT_WORK)"
  note_turned_away || say "that can't be noted on the disk"
  message "gpus.$CARD for VM $vmid, which starts" "an up or a destroy of this host is at work: ${AT_WORK:-it says nothing of itself}" \
    "its steps need the card where it is, and would end half-way without it; nothing was changed" "start the VM again when that has ended"
}

# note_turned_away - for whoever reads the host, until a VM has got the card. It leaves no state: everything is as it was.
note_turned_away() {
  need_dir "$ROOT$HANDOVER" &&
    write_atomically "$HANDOVER/$CARD.turned_away" 0600 printf 'vm=%s\nat=%(%F %T)T\nrun=%s\n' "$vmid" -1 "${AT_WORK//$'\n'/; }"
}

# note_taken - the VM has the card. Status 1: that isn't on the disk.
note_taken() {
  save_state state VM why '' || return 1
  remove_file "$HANDOVER/$CARD.turned_away" || :
}

# keep_card - the VM that had it last starts again (`qm reboot`, or before the way back has begun): it is all there already.
keep_card() {
  ! is_elsewhere && all_on vfio-pci && is_that_card && is_alive || return 1
  note_taken || return 1
  say "VM $vmid keeps it"
}

# is_elsewhere - does the VM run already, with it? Where nobody knows, it isn't taken for one that starts again.
is_elsewhere() {
  find_power qm "$vmid"
  [[ $POWER_NOW =~ ^(on|unknown)$ ]]
}

# find_owed - sets OWED: who is to be started after an earlier handover, but for USERS.
find_owed() {
  local id
  OWED=''
  [[ ${S[state]} == HELD ]] || return 0
  for id in ${S[containers]:-}; do [[ " ${USERS[*]} $OWED" == *" $id "* ]] || is_gone "$id" || OWED+="$id "; done
}

drain_card() { # VMID
  local persistence units='' taken numbers
  find_owed
  find_numbers
  taken=$NUMBERS
  # By the numbers of then.
  if [[ -n $OWED ]]; then numbers=${S[numbers]:-}; else numbers=$taken; fi
  bounded 30 nvidia-smi -i "$GPU" --query-gpu=persistence_mode --format=csv,noheader && persistence=$OUTPUT || persistence=''
  ! is_only || ! within "$ASK_SECONDS" systemctl is-active -q nvidia-persistenced.service || units=nvidia-persistenced.service
  REFUSED="its state can't be noted on the disk"
  save_state state DRAINING vm "$1" why '' containers "$OWED${USERS[*]}" numbers "$numbers" taken "$taken" modules '' d3cold '' persistence "${persistence//[[:space:]]/}" units "$units" || return 1
  say "VM $1 starts and gets it${USERS[*]:+; containers ${USERS[*]} are shut down for it}"
  stop_users && settle_persistence || return 1
  # A barrier against those who come between the look and the unbinding, where the card knows it.
  bounded 30 nvidia-smi drain -p "$GPU" -m 1 || say "it can't be drained, and goes without that: $OUTPUT"
}

# nobody_has_it - which was seen; else REFUSED says who has.
nobody_has_it() {
  find_card_numbers
  find_minor "$GPU"
  if ! find_holders "$ROOT/dev/nvidia$NUMBER" "${CARD_NUMBERS[@]}"; then
    REFUSED="who has it can't be told: $LOOK_FAILED"
    return 1
  fi
  has_no_holders
}

free_card() {
  # Somebody may have opened it since.
  nobody_has_it || return 1
  REFUSED="its state can't be noted on the disk"
  save_state state FREE
}

detach_card() {
  local module names='' function only=no status
  ! is_only || only=yes
  for module in nvidia_uvm nvidia_drm nvidia_modeset nvidia; do
    [[ $only == no || ! -d $ROOT/sys/module/$module ]] || names+="${names:+ }$module"
  done
  # Before a module goes: of the numbers that it frees, vfio would have taken one (its own are given out as it is loaded), and the driver come back with others.
  bounded 60 modprobe vfio-pci || { REFUSED="vfio-pci can't be loaded: $OUTPUT" && return 1; }
  REFUSED="its state can't be noted on the disk"
  save_state state DETACHED modules "$names" d3cold "$(deep_sleepers)" || return 1
  in_unit 20 step_claim || {
    status=$?
    REFUSED="its functions take no driver_override: $OUTPUT"
    ((status != 124)) || stuck "claiming it"
    return 1
  }
  for module in $names; do
    # It says "in use" at once, where unbinding would wait.
    status=0
    run_unit 30 step_unbind rmmod "$module" || status=$?
    ((status == 0)) || {
      REFUSED="the module $module, which goes with its only card, is in use: ${OUTPUT:-no text}"
      ((status != 124)) || stuck "unloading $module"
      return 1
    }
  done
  # Once more: somebody may have come since the first look.
  if [[ $only == no ]]; then nobody_has_it; else sound_is_free; fi || return 1
  in_unit 30 step_unbind || {
    status=$?
    REFUSED="a function of it can't be unbound: $OUTPUT"
    ((status != 124)) || stuck "unbinding it"
    return 1
  }
  in_unit 60 step_bind || :
  all_on vfio-pci || { REFUSED="not every function has come to vfio-pci: $(for function in "${FUNCTIONS[@]}"; do printf '%s %s; ' "$function" "$(card_driver "$function")"; done)" && return 1; }
  REFUSED="its state can't be noted on the disk"
  note_taken || return 1
  say "VM $vmid has it"
}
