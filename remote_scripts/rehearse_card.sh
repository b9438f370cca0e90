#!/usr/bin/env bash
# What would be found if VM VMID took a card now: every check of a handover, and its look at who has the card. Changes nothing.
# Needs: handover/take, handover/turn
#
# Arguments: CARDS (as of lib/handover/card.sh), CARD_NAME, VMID.
# Changes: nothing. What a look writes lies in a folder of its own in /run, which goes again.
# Verbs: rehearse.
# Answer: {"state","refused": why a start would be refused, or empty,"containers": that would be shut down, in this order,"ends": who has the card and ends with
#   them,"holders": who else has it,"way": how its driver would let go}.

rehearse() {
  local vmid=$VMID holder ends=() stays=() why='' at_work=no
  trap - ERR
  set +e
  ! run_at_work "$vmid" || at_work=yes
  RUN=$(mktemp -d "$ROOT/run/homelab-rehearsal.XXXXXX") || die "a folder in /run for what is found" "it can't be made" "nothing can be looked at" "make room in /run"
  USERS=() HOLDERS=()
  read_card "$CARD_NAME"
  load_state "$CARD_NAME"
  if [[ $at_work == yes ]]; then
    why="an up or a destroy of this host is at work"
  elif refused "$vmid"; then
    why=$REFUSED
  elif ! names_card "$vmid"; then
    why="VM $vmid doesn't have it: no hostpci option of it names the card, which \`pulumi up\` gives it"
  fi
  # Also where something stands against it: all of it is said at once.
  ((${#USERS[@]} > 0)) || find_users || why+=$([[ $why == *"$REFUSED"* ]] || printf '%s' "${why:+; }$REFUSED")
  if [[ $(card_driver "$GPU") == nvidia ]] && ! nobody_has_it && [[ -n $LOOK_FAILED ]]; then why+="${why:+; }$REFUSED"; fi
  for holder in "${HOLDERS[@]}"; do if goes_with_us "$holder"; then ends+=("$holder"); else stays+=("$holder"); fi; done
  rm -rf "$RUN"
  printf '{"state":"%s","refused":%s,"containers":%s,"ends":%s,"holders":%s,"way":"%s"}\n' "${S[state]}" "$(json_string "$why")" \
    "$(json_list "${USERS[@]}")" "$(json_list "${ends[@]}")" "$(json_list "${stays[@]}")" \
    "$(if is_only; then printf 'its modules are unloaded'; else printf 'it is unbound'; fi)"
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
