#!/usr/bin/env bash
# The guests that ran before a restart, started again. A start leaves a task, so that whoever is cut off between two of them starts nothing twice.
# Needs: ran, ran/others, files, guests, lines, pve, stopping, switch, handover/turn
#
# Gives: start_ran SECONDS -> RAN_STARTED, RAN_OFF, RAN_OWED; start_ran_alone. Variables: LATER (ids of guests that a run which is at work starts itself), UNWANTED (ids of those that
#   it wants off).
# A boot that came later than this isn't that restart's: a server may take half an hour, and the switch gives a boot back. After as long in a boot one that can't be told is given up.
RAN_COUNTS_SECONDS=7200
# A run that has confirmed a boot takes the host within this time (homelab/provider/boot_verification.py).
GRACE_SECONDS=${GRACE_SECONDS:-60}

# start_ran_alone - what the host itself does, every half minute, until nothing is owed.
start_ran_alone() {
  local text
  trap - PIPE HUP TERM # a host that shuts down need not wait for this
  is_there "$RAN" || { forget_ran && return; }
  is_quiet || return 0
  sleep "$GRACE_SECONDS"
  is_quiet || return 0
  LATER='' UNWANTED=''
  start_ran 0 || return 0
  text=$(together "${RAN_STARTED[@]}")
  text=${text:+the host itself has started what ran before its restart: $text}
  ((${#RAN_OFF[@]} == 0)) || text+="${text:+; }$(printf '%s; ' "${RAN_OFF[@]}")"
  [[ -z $text ]] || tell_next_up "${text%; }"
}

is_quiet() { is_boot_decided && ! run_at_work ''; }

# is_boot_decided - is this boot to stay, and has Proxmox VE started what it starts?
is_boot_decided() {
  local state
  [[ ! -e $RUN/restarting ]] && ! is_rolling_back && ! is_stopping || return 1
  [[ ! -e $STATE/armed || $(switch_note armed boot) == "$(boot_id)" ]] || is_pending boot || is_another_boot || return 1
  state=$(exec_within "$ASK_SECONDS" systemctl is-active pve-guests.service 2>/dev/null) || :
  # Where it has failed, or somebody has disabled it, it starts nothing any more in this boot.
  [[ $state =~ ^(active|failed)$ ]] || { [[ $state == inactive ]] && has_come_up; } || ! command -v pvesh >/dev/null
}

# has_come_up - has systemd no unit left that starts with the host?
has_come_up() { [[ $(exec_within "$ASK_SECONDS" systemctl is-system-running 2>/dev/null) =~ ^(running|degraded|maintenance)$ ]]; }

# tell_next_up TEXT - by what it says anyway. Of a host that was given back nothing is kept.
tell_next_up() {
  local file=judged before=''
  [[ -n $(find "$STATE" -mindepth 1 ! -name 'ran*' -print -quit 2>/dev/null) ]] || { log "$1" && return; }
  [[ ! -e $STATE/rolled-back ]] || file=rolled-back
  [[ ! -r $STATE/$file ]] || before=$(<"$STATE/$file")
  log "$1"
  write_atomically "/var/lib/homelab/$file" 0600 printf '%s%s' "${before:+$before; }" "$1"
}

together() { (($# == 0)) || { printf '%s' "$1" && shift && (($# == 0)) || printf ', %s' "$@"; }; } # WORDS...

# start_ran SECONDS - those that are owed and off, in Proxmox VE's order. In words, RAN_STARTED: who runs again; RAN_OFF: who stays off, and why; RAN_OWED: who is to be started later.
# Status 1: another one is at it, for so long, or this boot isn't decided.
start_ran() {
  local LOCK status=1
  RAN_STARTED=() RAN_OFF=() RAN_OWED=()
  make_run_dir && exec {LOCK}>>"$RUN/ran" || return 1
  ! flock -w "$1" "$LOCK" || ! is_boot_decided || ! start_each || status=0
  exec {LOCK}>&- # or the next try would wait for this one
  return "$status"
}

start_each() {
  local program id since boot line lines=() RAN_LEFT=() RAN_BOOTED FIRST
  find_first "$ROOT/proc/stat" '^btime ([0-9]+)$'
  RAN_BOOTED=$FIRST
  [[ $RAN_BOOTED =~ ^[1-9][0-9]{0,11}$ ]] || return 1
  [[ ! -r $ROOT$RAN ]] || mapfile -t lines < <(in_start_order)
  RAN_LEFT=("${lines[@]}")
  for line in "${lines[@]}"; do
    read -r program id since boot <<<"$line"
    if [[ $program:$id:$since =~ ^(qm|pct):[1-9][0-9]*:[1-9][0-9]{0,11}$ && " $UNWANTED " != *" $id "* ]]; then
      see_to "$program" "$id" "$since" "$boot" || { RAN_OWED+=("$(guest_in_words "$program" "$id")") && continue; }
    fi
    strike_out "$line" || return 1
  done
  ((${#RAN_OWED[@]} > 0)) || forget_ran
}

# strike_out LINE - nothing is owed of it any more. Status 1: that can't be written. The last one goes with all the rest.
strike_out() {
  local line left=()
  for line in "${RAN_LEFT[@]}"; do [[ $line == "$1" ]] || left+=("$line"); done
  RAN_LEFT=("${left[@]}")
  ((${#RAN_LEFT[@]} == 0)) || write_atomically "$RAN" 0600 printf '%s\n' "${RAN_LEFT[@]}"
}

guest_in_words() { # PROGRAM ID
  local name='' key=hostname word=container
  [[ $1 == pct ]] || key=name word=VM
  name=$(option_of "$1" "$2" "$key") || name=''
  printf '%s %s%s' "$word" "$2" "${name:+ ($name)}"
}

# option_of PROGRAM ID KEY - what its configuration says for its next start. Status 1: it can't be read.
option_of() {
  local text folder=lxc
  [[ $1 == pct ]] || folder=qemu-server
  text=$(exec_pve cat "$ROOT/etc/pve/$folder/$2.conf") || return 1
  sed -n "/^\[/q; s/^$3: *//p" <<<"$text"
}

# in_start_order - the lines of the note, by `startup: order=`, then by id. Who has no order comes last (PVE::JSONSchema::pve_parse_startup_order).
in_start_order() {
  local program id rest startup order
  while read -r program id rest; do
    startup=$(option_of "$program" "$id" startup) || startup='' # whether it can be read is asked once more
    order=9999999999
    [[ ! ,$startup =~ ,(order=)?([0-9]{1,9})(,|$) ]] || order=${BASH_REMATCH[2]}
    printf '%s %s %s %s\n' "$order" "$program" "$id" "$rest"
  done <"$ROOT$RAN" | sort -n -k 1,1 -k 3,3 | cut -d ' ' -f 2-
}

# see_to PROGRAM ID SINCE BOOT - status 1: it is still owed, or nobody knows.
see_to() {
  local lock touched=0 ha=0 name START_FAILED TEXT
  [[ $4 != "$(boot_id)" ]] || return 1 # not restarted yet
  find_power "$1" "$2" 20
  [[ ! $POWER_NOW =~ ^(on|gone)$ ]] || return 0
  was_touched "$2" "$3" || touched=$?
  under_ha "$1" "$2" || ha=$?
  name=$(guest_in_words "$1" "$2")
  if ((touched == 0 || ha == 0)); then
    if [[ -n $START_FAILED && $POWER_NOW == off && $ha == 1 && " $LATER " != *" $2 "* ]]; then
      masked "$START_FAILED"
      RAN_OFF+=("$name ran before the restart, and has not started again: $TEXT (\`$1 start $2\`)")
    fi
    return 0
  fi
  if [[ $POWER_NOW == unknown ]] || ((touched == 2 || ha == 2)) || ! lock=$(option_of "$1" "$2" lock); then
    (($(date +%s) - RAN_BOOTED > RAN_COUNTS_SECONDS)) || return 1
    RAN_OFF+=("$name ran before the restart, and whether it may be started couldn't be told for two hours (\`$1 status $2\`)")
  elif ((RAN_BOOTED - $3 > RAN_COUNTS_SECONDS)); then
    RAN_OFF+=("$name ran before a restart of this program's, and stays off: that is too long ago (\`$1 start $2\`)")
  elif [[ -n $lock ]]; then
    RAN_OFF+=("$name ran before the restart, and stays off: it is locked, $lock (once nothing works on it: \`$1 unlock $2\`, then \`$1 start $2\`)")
  elif [[ " $LATER " == *" $2 "* ]] || { [[ $1 == qm ]] && is_handed_a_card "$2" && run_at_work ''; }; then
    # Whom a run leaves off is started after it.
    return 1
  else
    start_again "$1" "$2" "$name"
  fi
}

# start_again PROGRAM ID NAME - once, however it ends. What counts is whether it runs.
start_again() {
  local startup TEXT
  log "starting $3 again, which ran before the restart"
  # shellcheck disable=SC2016 # of that bash
  answer_of "$RUN_SECONDS" 4000 bash -c 'exec "$@" 2>&1' - "$1" start "$2" </dev/null || :
  find_power "$1" "$2"
  if [[ $POWER_NOW != on ]]; then
    masked "${ANSWER:-no answer}"
    RAN_OFF+=("$3 ran before the restart, and has not started again: $(tail -n 3 <<<"$TEXT" | tr '\n' ' ')(\`$1 start $2\`)")
    return 0
  fi
  RAN_STARTED+=("$3")
  # `startup: up=`: so many seconds later comes the next one.
  startup=$(option_of "$1" "$2" startup) || startup=''
  [[ ! ,$startup =~ ,up=([0-9]{1,3})(,|$) ]] || ((${#RAN_LEFT[@]} < 2)) || sleep "${BASH_REMATCH[1]}"
}
