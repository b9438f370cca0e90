#!/usr/bin/env bash
# Reboots the host if its running kernel lacks what is configured, with a dead man's switch armed before.
#
# Arguments: POLICY (auto | manual), WORDS (of the command line; separated by spaces), FUNCTIONS (PCI addresses that must be on
#   vfio-pci; separated by spaces), DRIVER, FLAVOUR and SOURCE (NVIDIA's driver, as of lib/lacking.sh, which decides),
#   ROLLBACK_AFTER (seconds after boot), ROLLBACK (the script that the switch runs).
# Changes: /etc/systemd/system/homelab-rollback.{service,timer}, /var/lib/homelab/rollback; then the host restarts.
#   /var/lib/homelab/wanted-boot, which `revert` of cmdline.sh takes away.
#   Undone by confirm_boot.sh once the new boot was verified, by the switch itself otherwise.
# The switch: unless the boot is confirmed within ROLLBACK_AFTER seconds of its start, it takes our configuration away and
#   reboots. So a host that comes back without its network comes back again, as it was.
# Verbs: apply; plan (answers the same, before or after the layers were written, and changes nothing).
# Answer: {"reboot":"yes|no|manual","boot_id","reasons":[why],"perhaps":[what would be a reason],"guests":what a reboot stops}

apply() {
  take_lock
  need_boot_loader
  decide
  note_wanted_boot
  if [[ $DECISION == no ]]; then
    log "no reboot is needed: the running kernel has what is wanted"
  elif [[ $DECISION == manual ]]; then
    log "a reboot is needed (${REASONS[*]}) and left to you"
  else
    log "rebooting (${REASONS[*]}); this stops: ${GUESTS:-no guest}"
    arm
    # In a unit of its own, a moment later: this script still has to answer. (Timers are a minute inexact by default.)
    run_logged systemd-run --collect --on-active=1 --timer-property=AccuracySec=100ms systemctl reboot || die "a reboot of this host" "$OUTPUT" \
      "the running kernel lacks what was configured" "reboot it by hand, then run \`pulumi up\` again"
  fi
  report
}

plan() {
  need_boot_loader
  decide
  report
}

# decide - sets DECISION (yes, no or manual), REASONS, PERHAPS and GUESTS.
decide() {
  what_is_lacking
  GUESTS=$(running_guests)
  DECISION=no
  ((${#REASONS[@]} == 0)) || DECISION=yes
  [[ $DECISION == no || $POLICY != manual ]] || DECISION=manual
}

report() {
  printf '{"reboot":"%s","boot_id":"%s","reasons":%s,"perhaps":%s,"guests":%s}\n' "$DECISION" \
    "$(<"$ROOT/proc/sys/kernel/random/boot_id")" "$(json_list "${REASONS[@]}")" "$(json_list "${PERHAPS[@]}")" "$(json_string "$GUESTS")"
}

arm() {
  need_dir "$STATE"
  printf '%s\n' "$ROLLBACK" | write_atomically /var/lib/homelab/rollback 0700
  rm -f "$STATE/rolled-back"
  write_atomically /etc/systemd/system/homelab-rollback.service 0644 <<'UNIT'
# Written by homelab: takes back a boot configuration that nobody confirmed. Gone once the boot is confirmed.
[Unit]
Description=homelab: give back the boot configuration from before

[Service]
Type=oneshot
ExecStart=/var/lib/homelab/rollback
UNIT
  write_atomically /etc/systemd/system/homelab-rollback.timer 0644 <<UNIT
# Written by homelab: see homelab-rollback.service.
[Unit]
Description=homelab: wait for the boot to be confirmed

[Timer]
OnBootSec=${ROLLBACK_AFTER}s
AccuracySec=1s

[Install]
WantedBy=timers.target
UNIT
  run_logged systemctl daemon-reload || log "systemctl daemon-reload failed: the units are read at boot anyway"
  # Enabled, not started: it counts from the next boot.
  run_logged systemctl enable homelab-rollback.timer || die "the dead man's switch armed before the reboot" "$OUTPUT" \
    "without it a host that comes back without its network stays out of reach" "see \`systemctl status homelab-rollback.timer\`"
}

"$1" </dev/null
exit
