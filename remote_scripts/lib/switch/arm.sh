#!/usr/bin/env bash
# The dead man's switch armed, and disarmed.
# Needs: ran, switch
#
# Gives: arm [SECONDS]; disarm, disarm_when_given_back; await_boot SECONDS, await_no_boot; is_switch_there; forget_second_entry.
# Variables, for `arm`: ROLLBACK_AFTER (seconds after each boot's start), ROLLBACK (rollback.sh, as the switch runs it).

# await_boot SECONDS - for so long from now an `up` waits for the next boot.
await_boot() {
  local record
  record=$(sed '/^until /d' "$STATE/armed") && write_atomically /var/lib/homelab/armed 0600 printf '%s\nuntil %s\n' "$record" "$(($(date +%s) + $1))"
}

# await_no_boot - whoever restarts this host now, no `up` waits for it.
await_no_boot() {
  local record
  record=$(sed '/^until /d' "$STATE/armed") && write_atomically /var/lib/homelab/armed 0600 printf '%s\n' "$record"
}

# arm [SECONDS] - SECONDS: for so long from now an `up` waits for the next boot. Without: what is armed in this boot stays as it is.
arm() {
  local record boot TEMPORARY
  boot=$(boot_id)
  [[ ! -e $RUN/restarting && $(switch_note rolling-back boot) != "$boot" ]] || {
    find_rolled_back
    die "the next boot of this host configured" \
      "it is giving back its boot configuration now: $ROLLED_BACK" \
      "it restarts when that is done, and would lose what is written meanwhile" \
      "wait for its restart (\`journalctl -u homelab-rollback\` on the host shows it), then run \`pulumi up --refresh\`"
  }
  if [[ -z ${1:-} && $(switch_note armed boot) == "$boot" ]]; then
    record=$(<"$STATE/armed")
  else
    record=$(switch_record "${1:-}")
  fi
  BEFORE_WRITE=:
  need_dir "$STATE"
  switch_file "$SWITCH_PROGRAM" 0700 "$ROLLBACK"
  switch_file /var/lib/homelab/armed 0600 "$record"
  switch_file "$SWITCH_UNITS/homelab-rollback.service" 0644 "$(switch_service)"
  switch_file "$SWITCH_UNITS/homelab-rollback.timer" 0644 "$(switch_timer)"
  # Enabled, not started: it counts from the next boot. As `systemctl enable` does it, which needs nothing of a running systemd either.
  if [[ ! -L $ROOT$SWITCH_LINK ]]; then
    make_dir "${SWITCH_LINK%/*}"
    remember "$SWITCH_LINK"
    temporary_for "$SWITCH_LINK"
    ln -sfT "$SWITCH_UNITS/homelab-rollback.timer" "$TEMPORARY"
    in_place "$TEMPORARY" "$SWITCH_LINK"
    DOING=systemctl run_logged timeout -s KILL 60 systemctl daemon-reload || log "systemctl daemon-reload failed: the units are read at boot anyway"
  fi
  forget_boots
}

# switch_file PATH MODE TEXT - as `put_file`, but it is `disarm` that takes it away.
switch_file() {
  [[ ! -e $ROOT$1 || $(<"$ROOT$1") != "$3" ]] || return 0
  make_dir "${1%/*}"
  remember "$1"
  write_atomically "$1" "$2" printf '%s\n' "$3"
}

# forget_boots - what became of earlier boots is no news any more, and the next one takes the default entry.
forget_boots() {
  local name
  for name in rolling-back rolled-back judged; do
    remember "/var/lib/homelab/$name"
    remove_file "/var/lib/homelab/$name"
  done
  forget_second_entry
}

# disarm - first what decides, then the rest: a cut in between leaves a program that only takes itself away, or one that nothing starts any
# more, which goes with the next run.
disarm() {
  remove_file /var/lib/homelab/armed /var/lib/homelab/rolling-back
  if [[ -e $ROOT$SWITCH_UNITS/homelab-rollback.timer ]]; then
    DOING=systemctl run_logged timeout -s KILL 60 systemctl stop homelab-rollback.timer || log "the timer could not be stopped: $OUTPUT"
  fi
  remove_file "$SWITCH_LINK" "$SWITCH_UNITS/homelab-rollback.service" "$SWITCH_UNITS/homelab-rollback.timer" "$SWITCH_PROGRAM"
  DOING=systemctl run_logged timeout -s KILL 60 systemctl daemon-reload || log "systemctl daemon-reload failed: $OUTPUT"
  forget_second_entry
}

is_switch_there() { [[ -e $STATE/armed || -e $STATE/rolling-back || -e $ROOT$SWITCH_PROGRAM || -e $ROOT$SWITCH_UNITS/homelab-rollback.timer ]]; }

# disarm_when_given_back - after a `revert`: the switch stays for as long as a boot would read anything of ours.
disarm_when_given_back() {
  ! is_there "$RAN" || settle_ran
  is_switch_there || [[ -e $STATE/rolled-back || -e $STATE/judged ]] || return 0
  finish # settles the records
  is_all_given_back || return 0
  if is_switch_there; then disarm; fi
  remove_file /var/lib/homelab/rolled-back /var/lib/homelab/judged
}

switch_service() {
  cat <<'UNIT'
# Written by homelab: takes back a boot configuration that nobody confirmed. Gone once the boot is confirmed.
[Unit]
Description=homelab: give back the boot configuration from before, unless this boot is in order
ConditionPathExists=/var/lib/homelab/rollback
# Not stopped by a shutdown: it forces one that hangs.
DefaultDependencies=no

[Service]
Type=oneshot
ExecStart=/bin/bash /var/lib/homelab/rollback
Restart=on-failure
RestartSec=10
UNIT
}

switch_timer() {
  cat <<UNIT
# Written by homelab: see homelab-rollback.service.
[Unit]
Description=homelab: wait for the boot to be confirmed
# Started first of all: a boot that ends in emergency mode, since a disk is gone, starts no other timer.
DefaultDependencies=no
Conflicts=shutdown.target
Before=shutdown.target

[Timer]
# From systemd's start on: an initramfs may wait for the passphrase of a disk for as long as it likes.
OnStartupSec=${ROLLBACK_AFTER}s
AccuracySec=1s

[Install]
WantedBy=timers.target
UNIT
}

# switch_record [SECONDS] - the lines of `armed`.
switch_record() {
  [[ -n ${LOADER:-} ]] || find_boot_loader
  find_way
  printf 'boot %s\nloader %s\n' "$(boot_id)" "${LOADER:-grub}"
  [[ -z ${1:-} ]] || printf 'until %s\n' "$(($(date +%s) + $1))"
  printf 'address %s\ninterface %s\nport %s\nlistens %s\ngateway %s\n' "$ADDRESS" "$INTERFACE" "$PORT" "$LISTENS" "$GATEWAY"
}

# forget_second_entry - the default again: GRUB can't take its choice back by itself where it can't write (LVM, ZFS).
forget_second_entry() {
  local choice=$ROOT/sys/firmware/efi/efivars/LoaderEntryOneShot-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f
  if grep -qs '^next_entry=homelab-without-gpu-' "$ROOT/boot/grub/grubenv"; then
    run_logged grub-editenv - unset next_entry || log "the choice of the second boot entry could not be taken back: $OUTPUT"
  fi
  if [[ -r $choice && $(tr -d '\0' <"$choice") == *homelab-without-gpu-* ]]; then
    run_logged bootctl set-oneshot '' || log "the choice of the second boot entry could not be taken back: $OUTPUT"
  fi
}
