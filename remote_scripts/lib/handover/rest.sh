#!/usr/bin/env bash
# Whether every card that is handed over is with the host.
# Needs: common, files, lock, handover/places
#
# Gives: cards_away [VMID...] -> AWAY; need_rest [VMID...].

# cards_away [VMID...] - sets AWAY: which cards aren't with the host, in words; those on account of these VMs left out.
cards_away() {
  local file state vm since boot
  AWAY=''
  for file in "$ROOT$HANDOVER"/*.state; do
    [[ -e $file ]] || continue
    find_noted "$file" state
    state=$AS_NOTED
    find_noted "$file" vm
    vm=$AS_NOTED
    find_noted "$file" since
    since=$AS_NOTED
    find_noted "$file" boot
    boot=$AS_NOTED
    [[ -z $vm || " $* " != *" $vm "* || $state == STUCK || $state == DEAD ]] || continue
    # What was noted before the last start of the host tells nothing of now.
    [[ $state != HELD && $boot == "$(of_file "$ROOT/proc/sys/kernel/random/boot_id")" ]] || continue
    file=${file##*/} file=${file%.state}
    case $state in
      VM) state="is with VM $vm" ;;
      STUCK | DEAD) state="is $state after VM $vm" ;;
      *) state="is on its way to or from VM $vm ($state)" ;;
    esac
    printf -v since '%(%F %T)T' "${since:-0}"
    AWAY+="${AWAY:+; }gpus.$file $state since $since"
  done
}

# need_rest [VMID...] - as cards_away.
need_rest() {
  cards_away "$@"
  [[ -z $AWAY ]] || die "this host's shared cards with the host" "$AWAY" \
    "NVIDIA's driver and containers can't be changed, verified or given back while one of their cards is away; nothing was changed" \
    "shut that VM down, which gives the card back, then run the same again (STUCK or DEAD: homelab doctor explains it)"
}
