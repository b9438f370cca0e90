#!/usr/bin/env bash
# Says from inside a container whether its devices are there and can be opened, by root, by an ordinary user and, where a node is for a
# group, by a member of it. Changes nothing.
# Needs: files, container/plan, handover/rest
#
# Arguments: CTID, METHOD, MINORS, FUNCTIONS, CARDS (as of layers/container_gpus.py, in words), USES (what packages were installed for: with `video` vainfo has to work).
# Verbs: apply.
# Answer: {"state","nodes":[path],"tried":[sentence]}; nothing is opened in a container that is off. tried: programs that use a card.

apply() {
  local path problems=() opened=() state=stopped TRIED=()
  take_lock
  need_rest
  need_container
  noted_groups
  find_devices
  look_up
  need_devices
  read_conf
  plan
  if is_up; then
    state=running
    ((${#PROVIDED[@]} == 0)) || look_inside
    [[ -z $CARDS ]] || look_closer
    for path in "${DEVICES[@]}"; do
      [[ -z ${PROVIDED[$path]:-} ]] || judge "$path"
    done
    [[ " $USES " != *" video "* ]] || need_video
    ((${#problems[@]} == 0)) || die "devices that can be opened in container $CTID, by root and by an ordinary user" \
      "$(printf '%s\n' "${problems[@]}")" "what uses the card inside would fail" \
      "compare with \`pct config $CTID\`; was it changed by hand since its last start? then: \`pct reboot $CTID\`"
  else
    log "container $CTID is off: nothing was opened"
  fi
  printf '{"state":"%s","nodes":%s,"tried":%s}\n' "$state" "$(json_list "${opened[@]}")" "$(json_list "${TRIED[@]:0:16}")"
}

# look_inside - sets SAID: `root PATH` or `user PATH` -> what opening it for reading and writing says; nothing when it can be.
look_inside() {
  local who path text
  declare -gA SAID=()
  # dd opens, and makes nothing where there is nothing. BusyBox has no setpriv that takes a user.
  # shellcheck disable=SC2016 # for the shell inside
  answer_of 60 65536 pct exec "$CTID" -- sh -c '
    shell=/bin/sh
    try() { dd if="$1" of="$1" count=0 conv=notrunc 2>&1 | sed -n "s/^.*dd: *//p"; }
    if setpriv --reuid 65534 --regid 65534 --clear-groups dd if=/dev/null of=/dev/null count=0 >/dev/null 2>&1; then
      user() { setpriv --reuid 65534 --regid 65534 --clear-groups dd if="$1" of="$1" count=0 conv=notrunc 2>&1 | sed -n "s/^.*dd: *//p"; }
    else
      user() { su nobody -s "$shell" -c "dd if=$1 of=$1 count=0 conv=notrunc" 2>&1 | sed -n "s/^.*dd: *//p"; }
    fi
    for path; do
      printf "root\t%s\t%s\n" "$path" "$(try "$path")"
      printf "user\t%s\t%s\n" "$path" "$(user "$path")"
    done' sh "${DEVICES[@]}" </dev/null 2>&1 || :
  while IFS=$'\t' read -r who path text; do
    who+=" $path"
    [[ -z $path ]] || SAID[$who]=${text:-opened}
  done <<<"$ANSWER"
  ((${#SAID[@]} > 0)) || die "to look into container $CTID" "\`pct exec $CTID\` said ${ANSWER:-nothing}" "it can't be verified" \
    "try \`pct enter $CTID\`"
}

# look_closer - what counts for the nodes of cards that aren't NVIDIA's: sets SAID further, `member PATH` -> as `look_inside` does, by a
# member of the group that a node is for; NUMBERS: path -> its numbers inside; TRIED: what programs that use such a card say of it.
look_closer() {
  local kind path text rest word words=()
  declare -gA NUMBERS=()
  for path in "${CARD_NODES[@]}"; do
    words+=("$path=$(option "${PROVIDED[$path]:-}" gid)")
  done
  # shellcheck disable=SC2016 # for the shell inside
  answer_of 120 65536 pct exec "$CTID" -- sh -c '
    for word; do
      path=${word%=*} gid=${word##*=}
      printf "node\t%s\t%s\n" "$path" "$(stat -c %t:%T "$path" 2>/dev/null)"
      if [ -n "$gid" ] && setpriv --reuid 65534 --regid 65534 --clear-groups true >/dev/null 2>&1; then
        printf "member\t%s\t%s\n" "$path" "$(setpriv --reuid 65534 --regid "$gid" --clear-groups dd if="$path" of="$path" count=0 conv=notrunc 2>&1 | sed -n "s/^.*dd: *//p")"
      fi
      program="" say=""
      case $path in
        */renderD*) program=vainfo try="vainfo --display drm --device $path" ;;
        /dev/kfd) program=rocminfo try=rocminfo ;;
        *) continue ;;
      esac
      if ! command -v "$program" >/dev/null 2>&1; then
        say="$program is not installed in the container, so that it was not tried"
      elif said=$(timeout 20 $try 2>&1); then
        say="$program works, $(printf "%s\n" "$said" | grep -iE "driver version|marketing name.*(radeon|instinct|graphics)" | sed "s/^[^:]*: *//;s/[[:space:]]*$//" | sort -u | head -n 1)"
      else
        say="$program fails: $(printf "%s\n" "$said" | tail -n 1)"
      fi
      printf "tried\t%s\t%s\n" "$path" "$say"
    done
    if command -v clinfo >/dev/null 2>&1; then
      said=$(timeout 20 clinfo -l 2>/dev/null | sed -n "s/^Platform #[0-9]*: *//p" | head -n 4 | paste -s -d, -)
      printf "tried\tOpenCL\tclinfo finds %s\n" "${said:-no platform}"
    fi' sh "${words[@]}" </dev/null 2>/dev/null || :
  while IFS=$'\t' read -r kind path text rest; do
    word="member $path"
    [[ -n $path ]] || continue
    case $kind in
      node) [[ -z ${GROUP_OF[$path]:-} ]] || NUMBERS[$path]=$text ;;
      member) [[ -z ${GROUP_OF[$path]:-} ]] || SAID[$word]=${text:-opened} ;;
      tried) TRIED+=("$path: $text") ;;
    esac
  done <<<"$ANSWER"
}

# need_video - ends the run where VA-API doesn't work on a card whose driver was installed for that.
need_video() {
  local one failed=()
  for one in "${TRIED[@]}"; do
    [[ $one != /dev/dri/renderD* || $one == *": vainfo works"* ]] || failed+=("$one")
  done
  ((${#failed[@]} == 0 || ${#problems[@]} > 0)) || die "video (VA-API) on each Intel and AMD card of container $CTID" "$(printf '%s\n' "${failed[@]}")" \
    "libraries: [video] is for that; a driver of the container's release that is older than the card doesn't know it" \
    "try \`pct exec $CTID -- vainfo --display drm --device ${failed[0]%%:*}\`; a container of a newer release has newer drivers; or leave video out of libraries"
}

# judge PATH - adds to `problems`, or to `opened`. Those that aren't for everybody, on the host or by their entry, have to be there.
judge() {
  local mode=${MODE[$1]} entry=${PROVIDED[$1]} root="root $1" user="user $1" member="member $1" numbers
  root=${SAID[$root]:-nothing was said} user=${SAID[$user]:-nothing was said}
  if [[ $entry == dev* ]]; then
    mode=$(option "$entry" mode)
    # Somebody chose who is to have it: a user or a group.
    [[ -z $(option "$entry" uid)$(option "$entry" gid) ]] || mode=owner
    [[ -n $mode ]] || mode=666
  fi
  # Root is not above the mode where the node isn't its own: a bind mount in an unprivileged container.
  if [[ $mode != *6 && $root == *'Permission denied'* ]]; then root=opened; fi
  [[ $mode == *6 ]] || user=opened
  [[ $root == opened ]] || problems+=("$1: root: $(explained "$root")")
  [[ $user == opened || $user == "$root" ]] || problems+=("$1: an ordinary user: $(explained "$user")")
  if [[ -n ${GROUP_OF[$1]:-} ]]; then
    member=${SAID[$member]:-opened}
    [[ $member == opened ]] || problems+=("$1: a member of the group $(option "$entry" gid): $(explained "$member")")
    numbers=$(printf '%x:%x' "${MAJOR[$1]}" "${MINOR[$1]}")
    [[ ${NUMBERS[$1]:-$numbers} == "$numbers" ]] || problems+=("$1: it is the device ${NUMBERS[$1]} inside, and $numbers on the host (in hexadecimal)")
  fi
  [[ $root != opened || $user != opened ]] || opened+=("$1")
}

explained() {
  case $1 in
    *'No such file'*) printf 'it is not there (%s)' "$1" ;;
    *'Permission denied'*) printf 'its mode keeps it out (%s)' "$1" ;;
    *'not permitted'*) printf 'no rule of the control group allows it (%s)' "$1" ;;
    *'No such device'*) printf 'no driver is behind it (%s)' "$1" ;;
    *) printf '%s' "$1" ;;
  esac
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
