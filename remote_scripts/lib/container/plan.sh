#!/usr/bin/env bash
# Which lines of a container's configuration are to come and to go; and how it differs from what was set up.
# Needs: container/conf, container/devices, container/card_nodes, container/record
#
# Gives: plan -> WANT, PROVIDED, ADD_DEV, ADD_LXC, DROP_DEV, DROP_LXC; find_ours -> OURS, OUR_DEV,
#   OUR_LXC; find_provider PATH -> PROVIDER, RULE; want_mount PATH; mount_lines PATH NUMBERS -> RULE_LINE, MOUNT_LINE;
#   compare_lines.

# find_ours - sets OUR_DEV (numbers) and OUR_LXC (indexes in HEAD): what is there of the lines that we added; OURS: all that we noted.
find_ours() {
  local file line index
  declare -ga OURS=()
  declare -gA OUR_DEV=() OUR_LXC=()
  file=$ROOT$RECORDS/$CTID/ours
  [[ -r $file ]] || return 0
  mapfile -t OURS <"$file"
  for line in "${OURS[@]}"; do
    if [[ $line == 'dev '* ]]; then
      for index in "${!DEV[@]}"; do
        [[ -z ${OUR_DEV[$index]:-} ]] && same_dev "${DEV[$index]}" "${line#dev }" && OUR_DEV[$index]=$line && break
      done
    else
      split_line "$line"
      # The last one: a line that somebody had before stands above ours.
      for ((index = ${#HEAD[@]} - 1; index >= 0; index--)); do
        [[ -z ${OUR_LXC[$index]:-} && ${LXC_KEY[index]:-} == "$KEY" && ${LXC_VALUE[index]} == "$VALUE" ]] && OUR_LXC[$index]=$line && break
      done
    fi
  done
  return 0
}

# find_provider PATH - sets PROVIDER to how others give the container PATH: `dev VALUE`, `mount`, or nothing; RULE: is it allowed?
find_provider() {
  local index rules=()
  PROVIDER='' RULE=no
  for index in "${!DEV[@]}"; do
    find_dev_path "${DEV[$index]}"
    if [[ -z ${OUR_DEV[$index]:-} && $DEV_PATH == "$1" ]]; then
      PROVIDER="dev ${DEV[$index]}" RULE=yes
      return 0
    fi
  done
  for index in "${!LXC_KEY[@]}"; do
    [[ -z ${OUR_LXC[$index]:-} ]] || continue
    case ${LXC_KEY[index]} in
      lxc.mount.entry) ! binds "${LXC_VALUE[index]}" "$1" || PROVIDER=mount ;;
      lxc.cgroup2.devices.allow | lxc.cgroup2.devices.deny)
        # In their order: one for everything takes the place of all before it, another one of the same devices.
        split_rule "${LXC_VALUE[index]}" || continue
        if [[ $RULE_ABOUT == a* ]]; then rules=(); else without_rule "$RULE_ABOUT"; fi
        [[ ${LXC_KEY[index]} == *.deny ]] || ! allows "${MAJOR[$1]}" "${MINOR[$1]}" || rules+=("$RULE_ABOUT")
        ;;
    esac
  done
  ((${#rules[@]} == 0)) || RULE=yes
}

# without_rule DEVICES - takes it out of `rules`.
without_rule() {
  local rule kept=()
  for rule in "${rules[@]}"; do
    [[ $rule == "$1" ]] || kept+=("$rule")
  done
  rules=("${kept[@]}")
}

# plan - from what read_conf, find_devices and look_up have set: WANT (lines of ours that are to be there), PROVIDED
# (PATH -> how it gets in), GIVEN (PATH -> `mount`, or a dev[n] option's words, where a line is ours), and the way there: ADD_DEV and ADD_LXC (values and lines), DROP_DEV (numbers), DROP_LXC (indexes in HEAD).
plan() {
  local path mode rules=() complete OPTIONS
  declare -ga WANT=()
  declare -gA PROVIDED=() GIVEN=()
  find_ours
  complete=yes
  for path in "${DEVICES[@]:0:NEEDED}"; do
    [[ -z ${GROUP_OF[$path]:-} ]] || continue
    find_provider "$path"
    [[ -n $PROVIDER ]] || complete=no
  done
  for path in "${DEVICES[@]}"; do
    [[ -n ${MAJOR[$path]:-} ]] || continue
    find_provider "$path"
    # Somebody has given it what it needs: that is left as it is, and nothing that goes along is added.
    [[ $complete == no || -n $PROVIDER || -n ${GROUP_OF[$path]:-} ]] || continue
    mode=${MODE[$path]}
    [[ $path == /dev/nvidia-caps/* ]] || mode=666
    OPTIONS=mode=0$mode
    [[ -z ${GROUP_OF[$path]:-} ]] || node_options "$path"
    if [[ -n $PROVIDER && $RULE == yes ]]; then
      PROVIDED[$path]=$PROVIDER
      continue
    elif [[ -z $PROVIDER && $METHOD == device ]]; then
      PROVIDED[$path]="dev $path,$OPTIONS" GIVEN[$path]=$OPTIONS
      WANT+=("${PROVIDED[$path]}")
      continue
    fi
    PROVIDED[$path]=mount GIVEN[$path]=mount
    want_mount "$path"
  done
  WANT=("${rules[@]}" "${WANT[@]}")
  compare_lines
}

# want_mount PATH - after find_provider: what a mount entry of it lacks goes to `rules` and WANT.
want_mount() {
  local RULE_LINE MOUNT_LINE
  mount_lines "$1" "${MAJOR[$1]}:${MINOR[$1]}"
  [[ $RULE == yes ]] || rules+=("$RULE_LINE")
  [[ -n $PROVIDER ]] || WANT+=("$MOUNT_LINE")
}

# mount_lines PATH NUMBERS - sets RULE_LINE and MOUNT_LINE, the two by which a node is given without a dev[n] option.
mount_lines() {
  RULE_LINE="lxc.cgroup2.devices.allow: c $2 rwm"
  MOUNT_LINE="lxc.mount.entry: $1 ${1#/} none bind,optional,create=file"
}

# compare_lines - from WANT and what find_ours has found: ADD_DEV, ADD_LXC, DROP_DEV, DROP_LXC.
compare_lines() {
  local line index
  declare -ga ADD_DEV=() ADD_LXC=()
  declare -gA DROP_DEV=() DROP_LXC=()
  declare -A open=()
  for line in "${WANT[@]}"; do open[$line]=yes; done
  for index in "${!OUR_DEV[@]}"; do
    if [[ -n ${open[${OUR_DEV[$index]}]:-} ]]; then unset "open[${OUR_DEV[$index]}]"; else DROP_DEV[$index]=yes; fi
  done
  for index in "${!OUR_LXC[@]}"; do
    if [[ -n ${open[${OUR_LXC[$index]}]:-} ]]; then unset "open[${OUR_LXC[$index]}]"; else DROP_LXC[$index]=yes; fi
  done
  for line in "${WANT[@]}"; do
    [[ -n ${open[$line]:-} ]] || continue
    unset "open[$line]"
    if [[ $line == 'dev '* ]]; then ADD_DEV+=("${line#dev }"); else ADD_LXC+=("$line"); fi
  done
}
