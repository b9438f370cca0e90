#!/usr/bin/env bash
# The numbers of a card's nodes may be others when it comes back: the lines of its containers follow, or those that don't are found.
# Needs: handover/state, handover/numbers, handover/users, container/conf
#
# Gives: follow_numbers -> MOVED; is_about_it.

# follow_numbers - lines that this program gave to containers, and that they have while they are off, are about the cards that they were given for, whatever
# numbers these have now. MOVED: has this card others than when it was taken?
follow_numbers() {
  MOVED=no
  numbers_moved "${S[numbers]:-}" || numbers_moved "${S[taken]:-}" || return 0
  MOVED=yes
  [[ -x $ROOT$FOLLOWER ]] || return 0
  bounded 300 bash -c '"$@"' bash /usr/bin/python3 -I -S -B -X utf8 "$ROOT$FOLLOWER" follow_containers || :
  [[ -z $OUTPUT ]] || say "${OUTPUT//$'\n'/; }"
}

# is_about_it - are the lines of container CTID about this card, by the numbers that it has now? Ours follow; those that somebody else has written don't: of
# these it counts whether one means what has moved.
is_about_it() {
  [[ $MOVED == yes ]] || return 0
  read_conf || return 1
  if [[ -s $STATE/containers/$CTID/nodes ]]; then has_card || return 1; elif means_what_moved "${S[numbers]:-}" || means_what_moved "${S[taken]:-}"; then return 1; fi
}

# means_what_moved NUMBERS - does a line of the configuration that was read name a node as one of the card's was called, or a rule let in the driver's earlier major
# and none the one of now? (A dev[n] option has no numbers: they are looked up as the container starts.)
means_what_moved() {
  local was now name index
  IFS=, read -ra was <<<"$1"
  find_numbers
  IFS=, read -ra now <<<"$NUMBERS"
  ! is_another "${was[0]:-}" "${now[0]:-}" || ! gives_node "/dev/nvidia${was[0]}" || return 0
  for name in ${was[3]:-}; do ! is_renamed "$name" "${now[3]:-}" || ! gives_node "/dev/dri/$name" || return 0; done
  for index in 1 2; do
    ! is_another "${was[index]:-}" "${now[index]:-}" || ! lets_in "${was[index]}" || lets_in "${now[index]}" || return 0
  done
  return 1
}

# lets_in MAJOR - does a rule of the configuration that was read let its devices be opened?
lets_in() {
  local index
  for index in "${!LXC_KEY[@]}"; do
    [[ ${LXC_KEY[index]} == lxc.cgroup2.devices.allow ]] && split_rule "${LXC_VALUE[index]}" && allows "$1" 0 && return 0
  done
  return 1
}
