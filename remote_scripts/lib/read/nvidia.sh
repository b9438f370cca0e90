#!/usr/bin/env bash
# The driver that containers share: keys of read_host.sh's answer.
# Needs: nvidia, container/devices
#
# Gives: nvidia; nvidia_minors. Variables: PCI.

# The numbers N of /dev/nvidiaN that the host's driver gave to its cards; they need not be in PCI order.
nvidia_minors() {
  local file address minor separator=
  printf ',"nvidia_minors":{'
  for file in "$ROOT"/proc/driver/nvidia/gpus/*/information; do
    minor=$(sed -nE 's/^Device Minor:[[:space:]]*([0-9]+).*/\1/p' "$file" 2>/dev/null) || minor=''
    [[ -n $minor ]] || continue
    address=${file%/information}
    printf '%s"%s":%s' "$separator" "${address##*/}" "$minor"
    separator=,
  done
  printf '}'
}

# The driver that containers share, and whether its nodes are there, now and at the next boot.
nvidia() {
  local trouble='' uvm='' dev='' enabled=false names=()
  if [[ -n $(find "$PCI"/*/vendor -maxdepth 0 -exec grep -lx 0x10de {} + 2>/dev/null) ]]; then
    nvidia_trouble
    trouble="$(json_string "$FOUND"),$(json_string "$NEXT")"
    nvidia_uvm_trouble
    uvm="$(json_string "$FOUND"),$(json_string "$NEXT")"
    mapfile -t names < <(missing_nvidia_nodes)
    dev_trouble
    dev="$(json_string "$FOUND"),$(json_string "$NEXT")"
  fi
  [[ ! -L $ROOT$NODES_ENABLED ]] || enabled=true
  printf ',"nvidia":{"version":%s,"trouble":[%s],"uvm_trouble":[%s],"missing_nodes":%s,"nodes_enabled":%s,"dev_trouble":[%s]}' \
    "$(json_string "$(nvidia_version)")" "$trouble" "$uvm" "$(json_list "${names[@]}")" "$enabled" "$dev"
}
