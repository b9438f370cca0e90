#!/usr/bin/env bash
# The dead man's switch: what it is made of on the host.

disarm() {
  local unit
  if [[ -e $ROOT/etc/systemd/system/homelab-rollback.timer ]]; then
    run_logged systemctl disable --now homelab-rollback.timer || log "systemctl disable homelab-rollback.timer failed: $OUTPUT"
  fi
  for unit in service timer; do
    rm -f "$ROOT/etc/systemd/system/homelab-rollback.$unit"
  done
  rm -f "$STATE/rollback" "$ROOT/etc/systemd/system/timers.target.wants/homelab-rollback.timer"
  run_logged systemctl daemon-reload || log "systemctl daemon-reload failed: $OUTPUT"
}
