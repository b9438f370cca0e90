#!/usr/bin/env bash
# Containers that run on while a VM has the card (`shutDown: holders`): those that haven't got it open when the VM starts.
# Needs: common, files/atomic, handover/state, handover/card, handover/numbers, handover/holders, handover/users, nvidia
#
# Gives: find_staying -> USERS, STAYING, ALL_GO; freed_numbers; end_staying WHY; hold_autoload; settle_staying, watch_staying. Of the card that was read.
#
# Nothing is taken from such a container. What makes that safe: the driver's modules are unloaded, which the kernel refuses at once while anybody has one in
# use, also by what no look shows. And its numbers mean no other device meanwhile, or it is shut down after all.
# The kernel loads a driver when somebody opens a node of its major (fs/char_dev.c: request_module): a container that asks again and again would have NVIDIA's
# driver loaded while the card is away, in vain, or before it is to come back. `blacklist` ends that; `modprobe nvidia` works as before (modprobe.d(5)).

# is_sole - has this host no other card of NVIDIA's, whoever has that? Another one could come up under this one's numbers while it is away.
is_sole() {
  local path vendor class
  for path in "$PCI"/*; do
    [[ " ${FUNCTIONS[*]} " != *" ${path##*/} "* ]] || continue
    vendor='' class=0x03
    { read -r vendor <"$path/vendor"; } 2>/dev/null || :
    [[ $vendor == 0x10de ]] || continue
    # A chipset has other functions, too; of what says nothing, it isn't known.
    { read -r class <"$path/class"; } 2>/dev/null || :
    [[ $class != 0x03* ]] || return 1
  done
  is_only
}

# find_staying - of USERS, those that run on go to STAYING. Where that isn't sure nobody does, and ALL_GO says why.
find_staying() {
  local id holder open=' ' users=() numbers
  STAYING=() ALL_GO=''
  [[ $SHUT_DOWN == holders ]] && ((${#USERS[@]} > 0)) || return 0
  read -ra numbers <<<"$(card_numbers)"
  if ! is_sole; then
    ALL_GO="this host has another card of NVIDIA's, which could get this one's numbers"
  elif [[ ${S[state]} == HELD && -n ${S[containers]:-}${S[staying]:-} ]]; then
    # By the numbers of that time, the others can't be judged when it comes back.
    ALL_GO="containers are still to be started after the last handover (${S[containers]:-}${S[staying]:+ ${S[staying]}})"
  elif ! find_holders "$ROOT/dev/nvidia$(nvidia_minor "$GPU")" "${numbers[@]}"; then
    ALL_GO="who has it open can't be told ($LOOK_FAILED)"
  fi
  [[ -z $ALL_GO ]] || return 0
  for holder in "${HOLDERS[@]}"; do
    if [[ $holder =~ \ of\ container\ ([0-9]+)\)$ ]]; then
      open+="${BASH_REMATCH[1]} "
    elif [[ $holder != *' of '*.service')' && $holder != *' of '*.scope')' ]]; then
      ALL_GO="whether $holder, which has it open, is in a container can't be told"
      return 0
    fi
  done
  for id in "${USERS[@]}"; do if [[ $open == *" $id "* ]]; then users+=("$id"); else STAYING+=("$id"); fi; done
  USERS=("${users[@]}")
}

# freed_numbers - what goes with the card and its driver, and may be another device's until it is back: majors, and MAJOR:MINOR of its other nodes.
freed_numbers() {
  local function path numbers
  awk '/^Block/ { exit } $2 ~ /^nvidia-/ && $1 != 195 { printf "%s ", $1 }' "$ROOT/proc/devices" 2>/dev/null
  for function in "${FUNCTIONS[@]}"; do
    for path in "$PCI/$function"/drm/*/dev "$PCI/$function"/sound/*/dev "$PCI/$function"/sound/*/*/dev; do
      [[ -r $path ]] && read -r numbers <"$path" && printf '%s ' "$numbers"
    done
  done
}

# is_anothers - is one of S[freed] another device's now? WHY says which. What can't be read is taken for one.
is_anothers() {
  local one link function number name
  local -A names=()
  # By bash itself: a program that can't be started, for want of memory, tells nothing.
  while read -r number name && [[ $number != Block ]]; do [[ -z $name ]] || names[$number]+=" $name"; done 2>/dev/null <"$ROOT/proc/devices"
  ((${#names[@]} > 0)) || { WHY="which driver has which number can't be read" && return 0; }
  for one in ${S[freed]:-}; do
    if [[ $one == *:* ]]; then
      link=$(readlink "$ROOT/sys/dev/char/$one") || continue
      for function in "${FUNCTIONS[@]}"; do [[ $link != */"$function"/* ]] || continue 2; done
      WHY="the number $one, which was a node of the card's, is another device's now"
      return 0
    elif [[ -n ${names[$one]:-} && ${names[$one]} != *' nvidia'* ]]; then
      WHY="the number $one, which was NVIDIA's driver's, is another driver's now:${names[$one]}"
      return 0
    fi
  done
  return 1
}

# end_staying WHY - they are shut down after all, and started again with the others. Status 1, with REFUSED: one doesn't go off, or that can't be noted.
end_staying() {
  [[ -n ${S[staying]:-} ]] || return 0
  say "container ${S[staying]// /, } doesn't run on: $1"
  REFUSED="its state can't be noted on the disk"
  # shellcheck disable=SC2086 # numbers
  save_state containers "$(in_order ${S[containers]:-} ${S[staying]})" || return 1
  stop_users || return 1
  # Again where that isn't on the disk: whoever is off is passed over.
  save_state staying '' || :
}

# hold_autoload - nobody but this program has the driver loaded while the card is away. (`let_autoload`: as before.)
hold_autoload() {
  need_dir "$ROOT${AUTOLOAD%/*}" &&
    printf '# While a VM has gpus.%s and containers run on that know it: who opens a node of it loads no driver.\nblacklist nvidia\n' "$CARD" | write_atomically "$AUTOLOAD" 0644
}

# settle_staying - the card is back, and `follow_numbers` has been asked. Status 1, with REFUSED: one of them has numbers of before, and doesn't go off.
settle_staying() {
  local WHY=''
  [[ $MOVED == no ]] || WHY="the card's nodes have other numbers than before (${S[numbers]} -> $(numbers_now))"
  if [[ -n ${S[staying]:-} ]] && { [[ -n $WHY ]] || is_anothers; }; then
    end_staying "$WHY" || return 1
    # Only now: lines of a container that runs don't follow.
    follow_numbers
  fi
  S[staying]=''
  let_autoload
}

# watch_staying - while the card is away, by the timer.
watch_staying() {
  local WHY=''
  [[ -n ${S[staying]:-} && ${S[boot]:-} == "$(this_boot)" ]] && is_anothers || return 0
  end_staying "$WHY" || say "$REFUSED"
}
