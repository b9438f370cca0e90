#!/usr/bin/env bash
# The device nodes that a container is to have.
# Needs: files, nvidia, container/card_nodes
#
# Gives: find_devices -> DEVICES, NEEDED; look_up -> MAJOR, MINOR, MODE, MISSING; need_devices.
#   Variables: CTID, METHOD, MINORS, FUNCTIONS, CARDS.

# find_devices - sets DEVICES: what the container is to have, those that it can't do without first; NEEDED: how many these are.
find_devices() {
  local minor function kind path
  declare -ga DEVICES=()
  find_card_nodes
  for minor in $MINORS; do
    DEVICES+=("/dev/nvidia$minor")
    CARD_OF["/dev/nvidia$minor"]=$(nvidia_address "$minor")
  done
  [[ -z $MINORS ]] || DEVICES+=(/dev/nvidiactl /dev/nvidia-uvm)
  DEVICES+=("${CARD_NODES[@]}")
  NEEDED=${#DEVICES[@]}
  [[ -n $MINORS ]] || return 0
  for path in "$ROOT"/dev/nvidia-uvm-tools "$ROOT"/dev/nvidia-modeset "$ROOT"/dev/nvidia-caps/nvidia-cap*; do
    [[ ! -e $path ]] || DEVICES+=("${path#"$ROOT"}")
  done
  for function in $FUNCTIONS; do
    for kind in card renderD; do
      drm_node "$function" "$kind" || continue
      DEVICES+=("/dev/dri/$NODE")
      CARD_OF["/dev/dri/$NODE"]=$function
    done
  done
}

# look_up - sets MAJOR, MINOR (decimal) and MODE of each of DEVICES, by path; MISSING: those needed ones that aren't there.
look_up() {
  local path number=0
  declare -gA MAJOR=() MINOR=() MODE=()
  declare -ga MISSING=("${UNKNOWN_NODES[@]}")
  find_nodes "${DEVICES[@]}"
  for path in "${DEVICES[@]}"; do
    number=$((number + 1))
    [[ -n ${MAJOR[$path]:-} ]] || ((number > NEEDED)) || MISSING+=("$path")
  done
}

need_devices() {
  local next="run /usr/local/sbin/homelab-nvidia-nodes on the host, then \`pulumi up --refresh\`" found
  ((${#MISSING[@]} > 0)) || return 0
  found="not on the host: ${MISSING[*]}"
  [[ ${MISSING[0]} == /dev/nvidia* ]] || die "container $CTID given the nodes of its cards ($CARDS)" "$found" \
    "the card's driver makes them; its configuration is unchanged" \
    "see \`lspci -nnk\` and \`dmesg | grep -iE 'drm|i915|amdgpu'\` on the host, then run \`pulumi up --refresh\`"
  nvidia_trouble
  [[ -n $FOUND ]] || nvidia_uvm_trouble
  if [[ -n $FOUND ]]; then
    found+="; $FOUND" next=$NEXT
  elif ! missing_nvidia_nodes | grep -qxF -e "${MISSING[0]}"; then
    found+="; the driver's cards are: $(nvidia_nodes | sed -nE 's#^(/dev/nvidia[0-9]+) .*#\1#p' | tr '\n' ' ')"
    next="see \`nvidia-smi -L\`; correct gpuAssignment, or run \`pulumi up --refresh\` if the numbers have changed"
  else
    found+=": the driver serves them, and nothing has made the nodes yet"
  fi
  die "container $CTID given ${DEVICES[*]:0:NEEDED}" "$found" "without them nothing in it can use a card; its configuration is unchanged" "$next"
}
