#!/usr/bin/env bash
# What would be found if VM VMID took a card now: every check of a handover, and its look at who has the card. Changes nothing.
# Needs: handover/take, handover/turn
#
# Arguments: CARDS (as of lib/handover/card.sh), CARD_NAME, VMID.
# Changes: nothing. What a look writes lies in a folder of its own in /run, which goes again.
# Verbs: rehearse.
# Answer: {"state","stands": where the card is, where it isn't simply with its driver: nothing is looked at then,"refused": why a start would be refused, or
#   empty,"containers": that would be shut down, in this order,"ends": who has the card and ends with them,"holders": who else has it,"way": how its
#   driver would let go}.

rehearse() {
  local vmid=$VMID holder ends=() stays=() why='' stands='' at_work=no
  trap - ERR
  set +e
  ! run_at_work "$vmid" || at_work=yes
  RUN=$(mktemp -d "$ROOT/run/homelab-rehearsal.XXXXXX") || die "a folder in /run for what is found" "it can't be made" "nothing can be looked at" "make room in /run"
  USERS=() HOLDERS=() REFUSED=''
  read_card "$CARD_NAME"
  load_state "$CARD_NAME"
  # As settle_after_boot has it.
  find_boot
  [[ ${S[boot]:-} == "$THIS_BOOT" || ${S[state]} == DEAD ]] || S=([state]=HOST)
  find_stand
  if [[ $at_work == yes ]] && is_to_be_taken "$vmid"; then why="an up or a destroy of this host is at work"; fi
  if [[ -n $stands ]]; then
    why+="${REFUSED:+${why:+; }$REFUSED}"
  else
    look_at_it
  fi
  rm -rf "$RUN"
  printf '{"state":"%s","stands":%s,"refused":%s,"containers":%s,"ends":%s,"holders":%s,"way":"%s"}\n' "${S[state]}" "$(json_string "$stands")" "$(json_string "$why")" \
    "$(json_list "${USERS[@]}")" "$(json_list "${ends[@]}")" "$(json_list "${stays[@]}")" \
    "$(if is_only; then printf 'its modules are unloaded'; else printf 'it is unbound'; fi)"
}

# find_stand - sets `stands`: the card is away, or on vfio-pci; with REFUSED: and a start would fail now. As take_card goes on from there.
find_stand() {
  case ${S[state]} in
    VM)
      if [[ ${S[vm]:-} != "$vmid" ]]; then
        if is_over; then
          stands="VM ${S[vm]:-} had it last, and is off: it comes back to the host before it goes to VM $vmid"
        else
          stands="VM ${S[vm]:-} has it since $(date -d "@${S[since]:-0}" '+%F %T')" REFUSED="nothing is shut down for VM $vmid but containers: shut VM ${S[vm]:-} down first"
        fi
      elif is_elsewhere; then
        stands="VM $vmid runs, and has it already"
      else
        stands="VM $vmid had it last, and nobody has given it back yet: a start of it goes on from there"
      fi
      ;;
    RETURNING) stands="it is on its way back from VM ${S[vm]:-}, which a start waits for" ;;
    DRAINING | FREE | DETACHED) stands="it is on its way to VM ${S[vm]:-} (${S[state]})" REFUSED="a handover is at work: rehearse again when it has ended ($HANDOVER/log)" ;;
    STUCK | DEAD) stands="it is ${S[state]}" REFUSED=${S[why]:-nothing is tried with such a card} ;;
    *) ! { all_on vfio-pci && is_that_card; } || stands="it is on vfio-pci already, not by this program: it stays there" ;;
  esac
}

look_at_it() {
  if is_elsewhere; then why+="${why:+; }VM $vmid runs already, without it: a VM takes its card when it starts, so it is shut down first"; fi
  if refused "$vmid"; then
    why+="${why:+; }$REFUSED"
  elif ! names_card "$vmid"; then
    why+="${why:+; }VM $vmid doesn't have it: no hostpci option of it names the card, which \`pulumi up\` gives it"
  fi
  # Also where something stands against it: all of it is said at once.
  ((${#USERS[@]} > 0)) || find_users || why+=$([[ $why == *"$REFUSED"* ]] || printf '%s' "${why:+; }$REFUSED")
  if is_on nvidia "$GPU" && ! nobody_has_it && [[ -n $LOOK_FAILED ]]; then why+="${why:+; }$REFUSED"; fi
  for holder in "${HOLDERS[@]}"; do if goes_with_us "$holder"; then ends+=("$holder"); else stays+=("$holder"); fi; done
}

# goes_with_us HOLDER - is it of a container that is shut down, or NVIDIA's persistence daemon, which lets go when the mode goes off?
goes_with_us() {
  local ctid
  [[ $1 != *' of nvidia-persistenced.service)' ]] || return 0
  for ctid in "${USERS[@]}"; do [[ $1 != *" of container $ctid)" ]] || return 0; done
  return 1
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
