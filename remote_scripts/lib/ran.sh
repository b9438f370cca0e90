#!/usr/bin/env bash
# The guests that ran before a restart of this program's. Proxmox VE starts those alone that have `onboot` (get_start_stop_list of PVE::API2::Nodes): each of the others
# is started once, when the boot is confirmed, judged by the host, or given back (shared/ran_start.py; the units are written by shared/ran.py).
# Needs: files, guests
#
# Gives: note_running -> OUTPUT, forget_ran, settle_ran.
#
# STATE/ran: `qm 103 SECONDS BOOT` or `pct 901 …`: when, since 1970, and in which boot it was noted that it runs. A line goes once nothing is owed any more.
RAN=/var/lib/homelab/ran
RAN_UNITS=/etc/systemd/system
RAN_LINK=$RAN_UNITS/timers.target.wants/homelab-ran.timer

# note_running - before the restart. Status 1: it isn't known what runs, or can't be noted; OUTPUT says it.
note_running() {
  local boot now guest program kind text='' until=$((SECONDS + STATUS_SECONDS)) held
  boot=$(<"$ROOT/proc/sys/kernel/random/boot_id") now=$(date +%s)
  for kind in vm lxc; do
    program=qm
    [[ $kind == vm ]] || program=pct
    until find_guests "$kind"; do
      OUTPUT="\`$program list\` gave no answer for $STATUS_SECONDS s: which guests are to run again afterwards is not known"
      ((SECONDS < until)) || return 1
      sleep 1
    done
    for guest in "${GUESTS_HERE[@]}"; do text+="$program ${guest%% *} $now $boot"$'\n'; done
  done
  OUTPUT="guests that ran before the last restart are being started ($RAN)"
  make_run_dir && exec {held}>>"$RUN/ran" && flock -w 60 "$held" || return 1
  OUTPUT="which guests run can't be noted in $RAN"
  # What an earlier restart still owes.
  [[ ! -r $ROOT$RAN ]] || while read -r program guest now kind; do
    [[ $kind == "$boot" || $'\n'$text == *$'\n'"$program $guest "* ]] || text+="$program $guest $now $kind"$'\n'
  done <"$ROOT$RAN"
  if [[ -z $text ]]; then
    forget_ran
  else
    need_dir "$STATE" && write_atomically "$RAN" 0600 printf '%s' "$text"
  fi || return 1
  exec {held}>&-
}

# forget_ran - the note first: what a cut leaves of the rest takes itself away. What runs of it meanwhile goes on to its end.
forget_ran() {
  is_there "$RAN" || is_there "$RAN-program" || is_there "$RAN_LINK" || is_there "$RAN_UNITS/homelab-ran.timer" || return 0
  remove_file "$RAN" || return 1
  within 60 systemctl stop homelab-ran.timer >/dev/null 2>&1 || : # it isn't started in the boot in which it was noted
  remove_file "$RAN_LINK" "$RAN_UNITS/homelab-ran.timer" "$RAN_UNITS/homelab-ran.service" "$RAN-program" || return 1
  [[ ! -d $STATE ]] || rmdir --ignore-fail-on-non-empty "$STATE" || :
  within 60 systemctl daemon-reload >/dev/null 2>&1 || log "systemctl daemon-reload failed: homelab-ran.timer is known until the next boot"
}

# settle_ran - for whoever gives the host back. Nothing is started: who is still off then is said, and the host sees to it.
settle_ran() {
  local program id rest left=''
  while read -r program id rest; do
    find_power "$program" "$id" 0
    [[ $POWER_NOW =~ ^(on|gone)$ ]] || left+="$program $id $rest"$'\n'
  done <"$ROOT$RAN"
  if [[ -n $left ]]; then
    log "note: guests that ran before the restart of this host are still off; it starts them by itself once no run is at work (homelab-ran.timer): $(cut -d ' ' -f 2 <<<"${left%$'\n'}" | paste -sd ' ')"
  else
    forget_ran
  fi
}
