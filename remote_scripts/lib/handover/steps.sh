#!/usr/bin/env bash
# What is done with a card that is handed over, by sysfs. What a function has now decides, so that each step can be done again.
# Needs: handover/state, handover/card, nvidia
#
# Gives: step_claim, step_unbind, step_bind, step_release, step_attach, step_nodes CARD; deep_sleepers.

write_value() { { printf '%s\n' "$1" >"$2"; } 2>/dev/null; }

# step_claim - for vfio-pci; and from here on it doesn't sleep so deep that it may not wake up again (D3cold), which idle cards do on vfio-pci.
step_claim() {
  local function
  read_card "$1" || return 1
  for function in "${FUNCTIONS[@]}"; do [[ ! -e $PCI/$function/d3cold_allowed ]] || write_value 0 "$PCI/$function/d3cold_allowed"; done
  for function in "${FUNCTIONS[@]}"; do write_value vfio-pci "$PCI/$function/driver_override" || return 1; done
}

step_unbind() {
  local function status=0
  read_card "$1" || return 1
  for function in "${FUNCTIONS[@]}"; do
    [[ ! -L $PCI/$function/driver ]] || is_on vfio-pci "$function" || write_value "$function" "$PCI/$function/driver/unbind" || status=1
  done
  return "$status"
}

step_bind() {
  local function
  read_card "$1" || return 1
  for function in "${FUNCTIONS[@]}"; do
    is_on vfio-pci "$function" || write_value "$function" "${PCI%devices}drivers/vfio-pci/bind" || return 1
  done
}

step_release() {
  local function status=0
  read_card "$1" || return 1
  for function in "${FUNCTIONS[@]}"; do write_value '' "$PCI/$function/driver_override"; done
  write_value nvidia "$PCI/$GPU/driver_override"
  for function in "${FUNCTIONS[@]}"; do
    ! is_on vfio-pci "$function" || write_value "$function" "$PCI/$function/driver/unbind" || status=1
  done
  return "$status"
}

step_attach() {
  local function
  read_card "$1" || return 1
  for function in "${FUNCTIONS[@]}"; do
    [[ ! -L $PCI/$function/driver ]] || continue
    if [[ $function == "$GPU" ]]; then
      write_value "$function" "${PCI%devices}drivers/nvidia/bind"
    else
      write_value '' "$PCI/$function/driver_override"
      write_value "$function" "${PCI%devices}drivers_probe" || : # it may have no driver here
    fi
  done
  for function in "${FUNCTIONS[@]}"; do write_value '' "$PCI/$function/driver_override"; done
  load_state "$1"
  for function in ${S[d3cold]:-}; do [[ ! -e $PCI/$function/d3cold_allowed ]] || write_value 1 "$PCI/$function/d3cold_allowed"; done
  is_on nvidia "$GPU"
}

# deep_sleepers - functions that may go to D3cold.
deep_sleepers() {
  local function
  for function in "${FUNCTIONS[@]}"; do
    find_value "$PCI/$function/d3cold_allowed"
    [[ $FOUND_VALUE != 1 ]] || printf '%s ' "$function"
  done
}

# It loads nvidia-uvm.
step_nodes() { make_nvidia_nodes 2>/dev/null; }
