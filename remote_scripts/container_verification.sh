#!/usr/bin/env bash
# Says from inside a container whether its devices are there and can be opened, by root and by an ordinary user. Changes nothing.
# Needs: files, container/plan
#
# Arguments: CTID, METHOD, MINORS, FUNCTIONS (as of container_gpus.sh).
# Verbs: apply.
# Answer: {"state","nodes":[path]}; nothing is opened in a container that is off.

apply() {
  local path problems=() opened=() state=stopped
  take_lock
  need_container
  find_devices
  look_up
  need_devices
  choose_method
  read_conf
  plan
  if is_up; then
    state=running
    ((${#PROVIDED[@]} == 0)) || look_inside
    for path in "${DEVICES[@]}"; do
      [[ -z ${PROVIDED[$path]:-} ]] || judge "$path"
    done
    ((${#problems[@]} == 0)) || die "devices that can be opened in container $CTID, by root and by an ordinary user" \
      "$(printf '%s\n' "${problems[@]}")" "what uses the card inside would fail" \
      "compare with \`pct config $CTID\`; was it changed by hand since its last start? then: \`pct reboot $CTID\`"
  else
    log "container $CTID is off: nothing was opened"
  fi
  printf '{"state":"%s","nodes":%s}\n' "$state" "$(json_list "${opened[@]}")"
}

# look_inside - sets SAID: `root PATH` or `user PATH` -> what opening it for reading and writing says; nothing when it can be.
look_inside() {
  local who path text
  declare -gA SAID=()
  # dd opens, and makes nothing where there is nothing. BusyBox has no setpriv that takes a user.
  # shellcheck disable=SC2016 # for the shell inside
  while IFS=$'\t' read -r who path text; do
    who+=" $path"
    [[ -z $path ]] || SAID[$who]=${text:-opened}
  done < <(within 60 pct exec "$CTID" -- sh -c '
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
    done' sh "${DEVICES[@]}" </dev/null)
  ((${#SAID[@]} > 0)) || die "to look into container $CTID" "\`pct exec $CTID\` said nothing" "it can't be verified" \
    "try \`pct enter $CTID\`"
}

# judge PATH - adds to `problems`, or to `opened`. Those that aren't for everybody, on the host or by their entry, have to be there.
judge() {
  local mode=${MODE[$1]} entry=${PROVIDED[$1]} root="root $1" user="user $1"
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
