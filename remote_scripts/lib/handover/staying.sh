#!/usr/bin/env bash
# Containers that run on while a VM has the card (`shutDown: holders`): those that haven't got it open when the VM starts.
# Needs: common, lines, files/atomic, handover/state, handover/card, handover/numbers, handover/holders, handover/users, handover/follow, handover/units, nvidia
#
# Gives: find_owed -> OWED, KEPT; find_staying -> USERS, STAYING, FREED, ALL_GO; is_of_staying, sound_is_free -> REFUSED; end_staying WHY; hold_autoload; settle_staying, watch_staying. Takes, of handover/settle: is_late.
#   Of the card that was read. S[staying] has their ids; where one is to be restarted with the card at home, ID:INSTANCE, so that a restart by hand counts.
#
# Nothing is taken from such a container. What makes that safe: NVIDIA's modules are unloaded, which the kernel refuses at once while anybody has one in use,
# also by what no look shows; and no number of the card's becomes another device's, or the container is shut down after all.
# The kernel loads a driver when somebody opens a node of its major (fs/char_dev.c: request_module): a container that asks again and again would have NVIDIA's
# driver loaded while the card is away, in vain, or before it is to come back. `blacklist` ends that; `modprobe nvidia` works as before (modprobe.d(5)).
# (Not for the names of Debian's files, nvidia-current: where a file has `alias nvidia nvidia-current`, our own would do nothing.)

# find_owed - sets OWED: who is to be started, or restarted, after an earlier handover, but for USERS; KEPT: those of S[staying] as they are noted.
find_owed() {
  local id
  OWED='' KEPT=''
  [[ ${S[state]} == HELD ]] || return 0
  KEPT=${S[staying]:-}
  for id in ${S[containers]:-} $(ids_of "$KEPT"); do [[ " ${USERS[*]} $OWED" == *" $id "* ]] || is_gone "$id" || OWED+="$id "; done
}

# ids_of ENTRIES - without their instances.
ids_of() {
  local entry found=''
  for entry in $1; do found+="${found:+ }${entry%%:*}"; done
  printf '%s' "$found"
}

# find_staying - after that: of USERS, those that run on go to STAYING. Where that isn't sure nobody does, and ALL_GO says why.
find_staying() {
  local id holder open=' ' users=()
  STAYING=() FREED='' ALL_GO=''
  [[ $SHUT_DOWN == holders ]] && ((${#USERS[@]} > 0)) || return 0
  find_card_numbers
  find_minor "$GPU"
  if ! is_sole || ! is_only; then
    ALL_GO="this host has another card of NVIDIA's, which could get this one's numbers"
  elif [[ -n $OWED$KEPT ]]; then
    # By the numbers of that time, the others can't be judged when it comes back.
    ALL_GO="not every container has got over the last handover ($(ids_of "${OWED:-$KEPT}"))"
  elif ! note_freed; then
    ALL_GO="which numbers the driver has can't be told from /proc/devices"
  elif ! find_holders "$ROOT/dev/nvidia$NUMBER" "${CARD_NUMBERS[@]}"; then
    ALL_GO="who has it open can't be told ($LOOK_FAILED)"
  fi
  [[ -z $ALL_GO ]] || return 0
  for holder in "${HOLDERS[@]}"; do
    find_container_of "$holder" || { ALL_GO="whether $holder, which has it open, is in a container can't be told" && return 0; }
    open+="$INSIDE "
  done
  for id in "${USERS[@]}"; do if [[ $open == *" $id "* ]] || has_its_sound "$id"; then users+=("$id"); else STAYING+=("$id"); fi; done
  USERS=("${users[@]}")
}

# find_container_of HOLDER - sets INSIDE: its container, or nothing where it is the host's own. Status 1: that can't be told.
find_container_of() {
  INSIDE=''
  if [[ $1 =~ \ of\ container\ ([0-9]+)\)$ ]]; then INSIDE=${BASH_REMATCH[1]}; else [[ $1 == *' of '*.service')' || $1 == *' of '*.scope')' ]]; fi
}

# has_its_sound CTID - has the card a sound function, and the container sound? That function is unbound, which waits for whoever has it open (snd_card_free).
has_its_sound() {
  local function status=0
  for function in "${FUNCTIONS[@]}"; do
    [[ -d $PCI/$function/sound ]] || continue
    grep -aqE '/dev/snd|[^0-9]116:|\*:|devices\.allow[:= ]+a' "$ROOT/etc/pve/lxc/$1.conf" || status=$?
    ((status != 1)) || return 1
    return 0
  done
  return 1
}

# sound_is_free - of a card whose driver is gone: nobody has its sound open. Status 1, with REFUSED and HOLDERS.
sound_is_free() {
  local function path numbers=() control='' line
  HOLDERS=()
  for function in "${FUNCTIONS[@]}"; do
    for path in "$PCI/$function"/sound/*/dev "$PCI/$function"/sound/*/*/dev; do
      [[ -r $path ]] || continue
      read -r line <"$path" || continue
      numbers+=("$(printf '%x:%x' "${line%:*}" "${line#*:}")")
      find_first "${path%/dev}/uevent" '^DEVNAME=(.+)$'
      [[ -z $FIRST || ! -e $ROOT/dev/$FIRST ]] || control=$ROOT/dev/$FIRST
    done
  done
  [[ -n $control ]] || return 0
  find_holders "$control" "${numbers[@]}" || { REFUSED="who has its sound open can't be told: $LOOK_FAILED" && return 1; }
  has_no_holders
}

# is_of_staying - are all of HOLDERS in containers that run on, or can't that be told? Where another one has it, too, it helps nobody that they go.
is_of_staying() {
  local holder
  for holder in "${HOLDERS[@]}"; do
    ! find_container_of "$holder" || [[ -n $INSIDE && " ${S[staying]:-} " == *" $INSIDE "* ]] || return 1
  done
  ((${#HOLDERS[@]} > 0))
}

# end_staying WHY - they are shut down after all, each for itself, and started again with the others. Status 1, with REFUSED: S[staying] are those that don't go
# off, or that can't be noted. S[asked]: who was asked to go, since one may go off later; not who is locked.
end_staying() {
  local entry gone=() left='' asked='' why=''
  [[ -n ${S[staying]:-} ]] || return 0
  REFUSED="its state can't be noted on the disk"
  save_state asked "$(ids_of "${S[staying]}")" || return 1
  for entry in ${S[staying]}; do
    if stop_user "${entry%%:*}" "which doesn't run on: $1"; then
      gone+=("${entry%%:*}")
    else
      left+="$entry " why+="${why:+; }$REFUSED"
      [[ $ASKED == no ]] || asked+="${entry%%:*} "
    fi
  done
  # Who has gone off is tried to be started for as long as others are.
  [[ ${S[state]} != HELD || ${#gone[@]} == 0 ]] || S[since]=$EPOCHSECONDS
  # shellcheck disable=SC2086 # numbers
  in_order ${S[containers]:-} "${gone[@]}"
  # Once more where that isn't on the disk: whoever was asked is known.
  save_state containers "${ORDERED[*]}" staying "${left% }" asked "${asked% }" || :
  REFUSED=$why
  [[ -z $left ]]
}

# hold_autoload - nobody but this program has the driver loaded while the card is away. (`let_autoload`: as before.)
hold_autoload() {
  need_dir "$ROOT${AUTOLOAD%/*}" &&
    write_atomically "$AUTOLOAD" 0644 printf '# While a VM has gpus.%s and containers run on that know it: who opens a node of it loads no driver.\nblacklist nvidia\n' "$CARD"
}

# instance_of CTID - the number of its control group, another one after each of its starts; nothing: it isn't known. (Without the unified hierarchy systemd has one.)
instance_of() { stat -c %i "$ROOT/sys/fs/cgroup/lxc/$1" 2>/dev/null || stat -c %i "$ROOT/sys/fs/cgroup/systemd/lxc/$1" 2>/dev/null || :; }

# forget_gone - of S[staying], those that need nothing any more: destroyed, moved to another node, or restarted by somebody since they were to be. Whoever is off
# with a start that failed, as one does whose nodes aren't there, is started with the others; who was shut down stays so.
forget_gone() {
  local entry id now left='' status
  for entry in ${S[staying]:-}; do
    id=${entry%%:*}
    ! is_gone "$id" || continue
    status=0
    container_runs "$id" || status=$?
    if ((status != 1)); then
      now=$(instance_of "$id")
      [[ $entry == *:?* && -n $now && $now != "${entry#*:}" ]] || left+="$entry "
    elif [[ " ${S[containers]:-} " == *" $id "* ]]; then
      :
    elif [[ " ${S[asked]:-} " == *" $id "* ]] || within "$ASK_SECONDS" systemctl is-failed -q "pve-container@$id.service" 2>/dev/null; then
      say "container $id, which ran on, is off, by this program or by a start that failed: it is started again"
      S[containers]="${S[containers]:-} $id"
      [[ ${S[state]} != HELD ]] || S[since]=$EPOCHSECONDS
    else
      say "container $id, which ran on, was shut down meanwhile: it stays off"
    fi
  done
  S[staying]=${left% }
}

# settle_staying - the card is back, and `follow_numbers` has been asked. Status 1, with REFUSED: one of them has, or may have, numbers of before.
settle_staying() {
  local WHY='' entry status=0 named=''
  forget_gone
  [[ -n ${S[staying]:-} ]] || { S[asked]='' && let_autoload && return 0; }
  for entry in ${S[staying]}; do if [[ $entry == *:?* ]]; then named+="$entry "; else named+="${entry%:}:$(instance_of "${entry%:}") "; fi; done
  S[staying]=${named% }
  if [[ $MOVED == yes ]]; then
    find_numbers
    WHY="the card's nodes have other numbers than before (${S[numbers]} -> $NUMBERS)"
  elif numbers_lack; then
    WHY="not all of its numbers are there again (${S[numbers]} -> $NUMBERS)"
    { [[ ${S[state]} == HELD ]] && is_late; } || is_anothers || { REFUSED="containers run on with numbers of before, of which not all are there again (${S[numbers]} -> $NUMBERS): $(ids_of "${S[staying]}")" && return 1; }
  fi
  if [[ -n $WHY ]] || is_anothers; then
    end_staying "$WHY" || status=1
    # Only now: lines of a container that runs don't follow.
    follow_numbers
    ((status == 0)) || return 1
  fi
  S[staying]='' S[asked]=''
  let_autoload
}

# watch_staying - while the card is away, by the timer. (With the card at home, `start_owed` does what is left.)
watch_staying() {
  local WHY=''
  find_boot
  [[ -n ${S[staying]:-} && ${S[boot]:-} == "$THIS_BOOT" ]] && [[ ${S[state]} != HELD || -n ${S[owed]:-} ]] && is_anothers || return 0
  end_staying "$WHY" || say "$REFUSED"
}
