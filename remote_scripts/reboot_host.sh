#!/usr/bin/env bash
# Reboots the host if its running kernel lacks what is configured, with a dead man's switch armed before.
#
# Arguments: POLICY (auto | manual), WORDS (of the command line; separated by spaces), FUNCTIONS (PCI addresses that must be on
#   vfio-pci; separated by spaces), DRIVER (version of NVIDIA's driver that is installed and to be used; empty: it doesn't matter),
#   ROLLBACK_AFTER (seconds after boot), ROLLBACK (the script that the switch runs).
# Changes: /etc/systemd/system/homelab-rollback.{service,timer}, /var/lib/homelab/rollback; then the host restarts.
#   Undone by confirm_boot.sh once the new boot was verified, by the switch itself otherwise.
# The switch: unless the boot is confirmed within ROLLBACK_AFTER seconds of its start, it takes our configuration away and
#   reboots. So a host that comes back without its network comes back again, as it was.
# Verbs: apply.

apply() {
  local reasons=() guests
  take_lock
  need_boot_loader
  mapfile -t reasons < <(what_is_lacking)
  guests=$(running_guests)
  if ((${#reasons[@]} == 0)); then
    log "no reboot is needed: the running kernel has what is wanted"
    report no
  elif [[ $POLICY == manual ]]; then
    log "a reboot is needed (${reasons[*]}) and left to you"
    report manual
  else
    log "rebooting (${reasons[*]}); this stops: ${guests:-no guest}"
    arm
    # In a unit of its own, a moment later: this script still has to answer. (Timers are a minute inexact by default.)
    run_logged systemd-run --collect --on-active=1 --timer-property=AccuracySec=100ms systemctl reboot || die "a reboot of this host" "$OUTPUT" \
      "the running kernel lacks what was configured" "reboot it by hand, then run \`pulumi up\` again"
    report yes
  fi
}

report() {
  printf '{"reboot":"%s","boot_id":"%s","reasons":%s,"guests":%s}\n' "$1" "$(<"$ROOT/proc/sys/kernel/random/boot_id")" \
    "$(json_list "${reasons[@]}")" "$(json_string "$guests")"
}

# A line for each thing that only a reboot can bring.
what_is_lacking() {
  local running configured word address driver missing=()
  running=$(<"$ROOT/proc/cmdline")
  configured=$(configured_words)
  for word in $WORDS; do
    has_words "$running" "$word" || missing+=("$word")
  done
  ((${#missing[@]} == 0)) || printf '%s not on the running command line\n' "${missing[*]}"
  # What was configured away: words of the kinds that we write, running but no longer configured.
  for word in $running; do
    case $word in
      amd_iommu=* | intel_iommu=* | iommu=* | homelab.vfio=* | modprobe.blacklist=*)
        has_words "$configured" "$word" || printf '%s is no longer wanted\n' "$word"
        ;;
    esac
  done
  for address in $FUNCTIONS; do
    driver=$(readlink "$ROOT/sys/bus/pci/devices/$address/driver") || driver=none
    [[ ${driver##*/} == vfio-pci ]] || printf '%s is on %s\n' "$address" "${driver##*/}"
  done
  [[ -z $DRIVER ]] || driver_lacks
}

# Another module of NVIDIA's, or nouveau, lets go of a card at a boot alone. One that nothing has is taken without.
driver_lacks() {
  local loaded device address driver
  loaded=$(nvidia_version)
  [[ -z $loaded || $loaded == "$DRIVER" ]] || printf "NVIDIA's driver %s is loaded, and %s is installed\n" "$loaded" "$DRIVER"
  for device in "$ROOT"/sys/bus/pci/drivers/nouveau/*:*; do
    address=${device##*/}
    [[ -e $device && " $FUNCTIONS " != *" $address "* ]] || continue
    printf '%s is on nouveau\n' "$address"
  done
}

running_guests() {
  {
    ! command -v qm >/dev/null || qm list | awk '$3 == "running" { printf "VM %s (%s), ", $1, $2 }'
    ! command -v pct >/dev/null || pct list | awk '$2 == "running" { printf "container %s (%s), ", $1, $NF }'
  } | sed 's/, $//'
}

arm() {
  mkdir -p "$STATE"
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
