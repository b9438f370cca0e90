#!/usr/bin/env bash
# Our lines of a container at a boot: each goes on to be about the device that it was given for, whatever name and numbers the kernel has for
# that now. Nothing else is decided: the way in which it is given stays, and what somebody has taken out stays out.
# Needs: nvidia, container/conf, container/card_nodes, container/devices, container/record
#
# Gives: follow_nodes -> WANT, FOLLOWED, ABSENT; find_now PATH ADDRESS KIND -> NOW. Takes, of container/plan: find_ours, find_provider, want_mount, mount_lines,
# compare_lines.

# follow_nodes - as `plan`, from what is noted in the record's `nodes` and what read_conf has set. FOLLOWED: what that part is to be afterwards; ABSENT: nodes
# of cards that aren't there. A node may be noted twice, as it was and as it is to be, by a run that was cut short.
follow_nodes() {
  local path numbers address kind given key line NOW PROVIDER RULE keys=() rules=() LINES_OF=()
  declare -ga WANT=() FOLLOWED=() ABSENT=() ADD_DEV=() ADD_LXC=()
  declare -gA MAJOR=() MINOR=() MODE=() DROP_DEV=() DROP_LXC=()
  declare -A there=() known=() entry=() written=() has=() now_at=()
  find_ours
  for line in "${OUR_DEV[@]}" "${OUR_LXC[@]}"; do there[$line]=yes; done
  # Nothing of ours is in it: it was restored, or another container has the number now.
  ((${#there[@]} > 0)) || return 0
  while read -r path numbers address kind given; do
    key="$address $kind"
    [[ $address != - ]] || key=$path
    [[ -n ${entry[$key]:-} ]] || keys+=("$key")
    : "${entry[$key]:="$path $numbers $address $kind $given"}"
    [[ $path != - ]] || has[$key]=yes
    find_lines "$path" "$numbers" "$given"
    for line in "${LINES_OF[@]}"; do
      known[$line]=yes written[$key]+=$line$'\n'
      [[ -z ${there[$line]:-} ]] || has[$key]=yes entry[$key]="$path $numbers $address $kind $given"
    done
  done < <(noted nodes)
  for line in "${!there[@]}"; do [[ -n ${known[$line]:-} ]] || WANT+=("$line"); done
  for key in "${!has[@]}"; do
    read -r path _ address kind _ <<<"${entry[$key]}"
    find_now "$path" "$address" "$kind"
    now_at[$key]=$NOW
  done
  find_nodes "${now_at[@]}"
  for key in "${keys[@]}"; do
    read -r path numbers address kind given <<<"${entry[$key]}"
    [[ -z ${has[$key]:-} ]] || follow_node "${now_at[$key]}"
    FOLLOWED+=("$path $numbers $address $kind $given")
  done
  WANT=("${rules[@]}" "${WANT[@]}")
  compare_lines
}

# follow_node NOW - one of `entry`, and what its node is called now (nothing: it isn't there); sets `path` and `numbers` to what they are now. `-`: the
# container was given it and has no line for it, since the name that it had is another card's.
follow_node() {
  local line now=$1
  if [[ -z $now || -z ${MAJOR[$now]:-} ]]; then
    [[ $address == - ]] || ABSENT+=("$kind of $address")
    if [[ $path == - ]] || is_of_another "$path" "$kind"; then path=- numbers=-; else keep_lines; fi
    return 0
  fi
  if [[ "$path $numbers" == "$now ${MAJOR[$now]}:${MINOR[$now]}" || ($path == "$now" && $given != mount) ]]; then
    keep_lines
    return 0
  fi
  find_provider "$now"
  path=$now numbers=${MAJOR[$now]}:${MINOR[$now]}
  if [[ $given == mount ]]; then
    want_mount "$path"
  elif [[ -n $PROVIDER ]]; then
    path=- numbers=- # somebody gives it that; it goes back to ours when the name is another one again
  else
    WANT+=("dev $path,$given")
  fi
}

# keep_lines - those of `key` that are there.
keep_lines() {
  while IFS= read -r line; do
    [[ -z $line || -z ${there[$line]:-} ]] || WANT+=("$line")
  done <<<"${written[$key]:-}"
}

# find_lines PATH NUMBERS GIVEN - sets LINES_OF: the lines by which a node is given.
find_lines() {
  local RULE_LINE MOUNT_LINE
  LINES_OF=()
  if [[ $1 != - && $3 == mount ]]; then
    mount_lines "$1" "$2"
    LINES_OF=("$RULE_LINE" "$MOUNT_LINE")
  elif [[ $1 != - ]]; then
    LINES_OF=("dev $1,$3")
  fi
}

# find_now PATH ADDRESS KIND - sets NOW: what that node is called now; nothing: it isn't there.
find_now() {
  NOW=$1
  case $3 in
    card | renderD) if drm_node "$2" "$3"; then NOW=/dev/dri/$NODE; else NOW=''; fi ;;
    nvidia)
      find_minor "$2"
      NOW=${NUMBER:+/dev/nvidia$NUMBER}
      ;;
  esac
  [[ -n $NOW && -e $ROOT$NOW ]] || NOW=''
}

# is_of_another PATH KIND - its card has no node now: does another card have that name? What is in /dev/dri, the kernel has made.
is_of_another() {
  case $2 in
    card | renderD) [[ -e $ROOT$1 ]] ;;
    nvidia) [[ -n $(nvidia_address "${1#/dev/nvidia}") ]] ;;
    *) false ;;
  esac
}
