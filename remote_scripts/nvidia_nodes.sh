#!/usr/bin/env bash
# NVIDIA's device nodes in /dev: now, and at every boot before guests start.
# Needs: boot_service, files, nvidia
#
# Arguments: NEEDED (yes | no: does a container have a card of NVIDIA's?), NODES (the program that makes them), UNIT (the service that runs it), GENERATION (no part in what happens).
# Changes: /usr/local/sbin/homelab-nvidia-nodes, /etc/systemd/system/homelab-nvidia-nodes.service, which is enabled; the nodes.
# Undone by `revert`, and by `apply` where it isn't needed any more: the files and the service; nodes stay until the next boot, as others may use them.
# Verbs: apply, revert, plan (what `apply` would change, as files.sh answers it).

PROGRAM=/usr/local/sbin/homelab-nvidia-nodes
SERVICE=homelab-nvidia-nodes.service

apply() {
  local missing
  take_lock
  if [[ $NEEDED != yes ]]; then
    take_away
    finish
    printf '{"driver":%s,"changed":"%s"}\n' "$(json_string "$(nvidia_version)")" "$CHANGED"
    return 0
  fi
  nvidia_trouble
  [[ -z $FOUND ]] || die "NVIDIA's driver loaded on the host" "$FOUND" "containers share the cards with the host's driver" "$NEXT"
  nvidia_uvm_trouble
  [[ -z $FOUND ]] || die "/dev/nvidia-uvm, of the module nvidia-uvm" "$FOUND" "without it nothing can use CUDA in a container" "$NEXT"
  write_boot_service nodes "$PROGRAM" "$NODES" "$SERVICE" "$UNIT"
  enable_boot_service "$SERVICE" "$NODES_ENABLED" "after a reboot containers would find no device nodes"
  run_logged "$ROOT$PROGRAM" || die "NVIDIA's device nodes made" "$OUTPUT" "containers are given them" \
    "run $PROGRAM on the host and read \`dmesg | tail\`"
  missing=$(missing_nvidia_nodes)
  [[ -z $missing && -e $ROOT/dev/nvidia-uvm ]] || die "NVIDIA's device nodes in /dev" "missing: ${missing:-/dev/nvidia-uvm}; $OUTPUT" \
    "containers are given them" "run $PROGRAM on the host and read \`dmesg | tail\`"
  finish
  printf '{"driver":%s,"changed":"%s"}\n' "$(json_string "$(nvidia_version)")" "$CHANGED"
}

# The driver may be installed only by the run that is planned.
plan() { plan_boot_service nodes "$PROGRAM" "$NODES" "$SERVICE" "$UNIT" "$NODES_ENABLED"; }

revert() {
  take_lock
  take_away
  finish
  printf '{"changed":"%s"}\n' "$CHANGED"
}

take_away() { drop_boot_service nodes "$PROGRAM" "$SERVICE" "$NODES_ENABLED"; }

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
