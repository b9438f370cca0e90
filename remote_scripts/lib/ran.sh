#!/usr/bin/env bash
# The guests that ran before a restart of this program's. Proxmox VE starts those alone that have `onboot` (get_start_stop_list of PVE::API2::Nodes): each of the others
# is started once, when the boot is confirmed, judged by the host, or given back (lib/ran/start.sh).
# Needs: files, guests
#
# Gives: note_running -> OUTPUT, drop_ran, forget_ran, settle_ran. Variables: RAN_PROGRAM (confirm_boot.sh, as the host itself runs it; none: what is there stays).
#
# STATE/ran: `qm 103 SECONDS BOOT` or `pct 901 …`: when, since 1970, and in which boot it was noted that it runs. A line goes once nothing is owed any more.
RAN=/var/lib/homelab/ran
RAN_UNITS=/etc/systemd/system
RAN_LINK=$RAN_UNITS/timers.target.wants/homelab-ran.timer
RAN_PROGRAM=${RAN_PROGRAM:-} # a roll-back brings none

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
    need_dir "$STATE" && arm_ran && write_atomically "$RAN" 0600 printf '%s' "$text"
  fi || return 1
  exec {held}>&-
}

# arm_ran - enabled as `systemctl enable` does it, and not started: it is for the next boot.
arm_ran() {
  local TEMPORARY
  if [[ -z $RAN_PROGRAM ]]; then return 0; fi
  need_dir "$ROOT${RAN_LINK%/*}" &&
    write_atomically "$RAN-program" 0700 printf '%s\n' "$RAN_PROGRAM" &&
    write_atomically "$RAN_UNITS/homelab-ran.service" 0644 printf '%s\n' "$(ran_service)" &&
    write_atomically "$RAN_UNITS/homelab-ran.timer" 0644 printf '%s\n' "$(ran_timer)" || return 1
  temporary_for "$RAN_LINK"
  ln -sfT "$RAN_UNITS/homelab-ran.timer" "$TEMPORARY" && in_place "$TEMPORARY" "$RAN_LINK"
}

# drop_ran - of this boot, which isn't restarted after all.
drop_ran() {
  local left
  is_there "$RAN" || return 0
  left=$(grep -v " $(<"$ROOT/proc/sys/kernel/random/boot_id")\$" "$ROOT$RAN") || left=''
  if [[ -n $left ]]; then write_atomically "$RAN" 0600 printf '%s\n' "$left"; else forget_ran; fi
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

ran_service() {
  cat <<'UNIT'
# Written by homelab: starts the guests again that ran before its restart of this host. Gone then.
[Unit]
Description=homelab: start the guests that ran before the restart
ConditionPathExists=/var/lib/homelab/ran-program
After=pve-guests.service

[Service]
Type=oneshot
# It isn't worth a line each time that nothing can be done yet.
SyslogLevel=notice
LogLevelMax=notice
ExecStart=-/bin/bash /var/lib/homelab/ran-program start_alone
# What a start leaves running in here, such as swtpm or virtiofsd, is the guest's.
KillMode=process
UNIT
}

ran_timer() {
  cat <<'UNIT'
# Written by homelab: see homelab-ran.service.
[Unit]
Description=homelab: wait until the boot is confirmed or given back

[Timer]
OnBootSec=30s
OnUnitInactiveSec=30s
AccuracySec=1s

[Install]
WantedBy=timers.target
UNIT
}
