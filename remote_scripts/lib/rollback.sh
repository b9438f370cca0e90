#!/usr/bin/env bash
# The dead man's switch: what it is made of on the host.

disarm() {
  local unit
  if [[ -e $ROOT/etc/systemd/system/homelab-rollback.timer ]]; then
    run_logged systemctl disable --now homelab-rollback.timer || log "systemctl disable homelab-rollback.timer failed: $OUTPUT"
  fi
  for unit in timers.target.wants/homelab-rollback.timer homelab-rollback.service homelab-rollback.timer; do
    remove_file "/etc/systemd/system/$unit"
  done
  remove_file /var/lib/homelab/rollback
  run_logged systemctl daemon-reload || log "systemctl daemon-reload failed: $OUTPUT"
}
