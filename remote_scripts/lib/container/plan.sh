#!/usr/bin/env bash
# Which lines of a container's configuration are to come and to go; and how it differs from what was set up.
# Needs: container/conf, container/devices, container/record
#
# Gives: plan -> WANT, PROVIDED, ADD_DEV, ADD_LXC, DROP_DEV, DROP_LXC; changes_something; container_drift; find_ours -> OURS, OUR_DEV,
#   OUR_LXC; find_provider PATH -> PROVIDER, RULE.

# find_ours - sets OUR_DEV (numbers) and OUR_LXC (indexes in HEAD): what is there of the lines that we added; OURS: all that we noted.
find_ours() {
  local file line index
  declare -ga OURS=()
  declare -gA OUR_DEV=() OUR_LXC=()
  file=$ROOT$(record_dir)/ours
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

# plan - from what read_conf, find_devices, look_up and choose_method have set: WANT (lines of ours that are to be there), PROVIDED
# (PATH -> how it gets in), and the way there: ADD_DEV and ADD_LXC (values and lines), DROP_DEV (numbers), DROP_LXC (indexes in HEAD).
plan() {
  local path mode line index rules=() complete
  declare -ga WANT=() ADD_DEV=() ADD_LXC=()
  declare -gA PROVIDED=() DROP_DEV=() DROP_LXC=()
  declare -A open=()
  find_ours
  complete=yes
  for path in "${DEVICES[@]:0:NEEDED}"; do
    find_provider "$path"
    [[ -n $PROVIDER ]] || complete=no
  done
  for path in "${DEVICES[@]}"; do
    [[ -n ${MAJOR[$path]:-} ]] || continue
    find_provider "$path"
    # Somebody has given it what it needs: that is left as it is, and nothing that goes along is added.
    [[ $complete == no || -n $PROVIDER ]] || continue
    mode=${MODE[$path]}
    [[ $path == /dev/nvidia-caps/* ]] || mode=666
    if [[ -n $PROVIDER && $RULE == yes ]]; then
      PROVIDED[$path]=$PROVIDER
      continue
    elif [[ -z $PROVIDER && $HOW == device ]]; then
      PROVIDED[$path]="dev $path,mode=0$mode"
      WANT+=("${PROVIDED[$path]}")
      continue
    fi
    PROVIDED[$path]=mount
    [[ $RULE == yes ]] || rules+=("lxc.cgroup2.devices.allow: c ${MAJOR[$path]}:${MINOR[$path]} rwm")
    [[ -n $PROVIDER ]] || WANT+=("lxc.mount.entry: $path ${path#/} none bind,optional,create=file")
  done
  WANT=("${rules[@]}" "${WANT[@]}")
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

changes_something() { ((${#ADD_DEV[@]} + ${#ADD_LXC[@]} + ${#DROP_DEV[@]} + ${#DROP_LXC[@]} > 0)); }

# container_drift - a sentence for each difference between what was set up and what there is.
container_drift() {
  local line index path
  if [[ ! -e $ROOT$PVE_LXC/$CTID.conf ]]; then
    printf 'container %s is gone\n' "$CTID"
    return 0
  fi
  read_conf
  find_devices
  look_up
  for path in "${MISSING[@]}"; do printf '%s is not on the host\n' "$path"; done
  ((${#MISSING[@]} == 0)) || return 0
  choose_method
  plan
  for line in "${ADD_DEV[@]}"; do printf 'dev[n]: %s is not there\n' "$line"; done
  for line in "${ADD_LXC[@]}"; do printf '%s is not there\n' "$line"; done
  for index in "${!DROP_DEV[@]}"; do printf 'dev%s: %s is of no use any more\n' "$index" "${DEV[$index]}"; done
  for index in "${!DROP_LXC[@]}"; do printf '%s is of no use any more\n' "${HEAD[index]}"; done
  [[ ! -e $ROOT$(record_dir)/restart ]] || printf 'container %s still has to be restarted\n' "$CTID"
}
