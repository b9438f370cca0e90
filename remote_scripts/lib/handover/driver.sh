#!/usr/bin/env bash
# A card and NVIDIA's driver: its modules loaded, the card bound to it, and whether it answers.
# Needs: handover/state, handover/card, handover/units
#
# Gives: load_driver, attach, bind_again; is_served, let_clients_in. Of the card that was read. Takes, of handover/back: stuck.

# load_driver - with all modules that were unloaded for it, or for another card that is away still. Status 1: it waits in the kernel, or can't be told to.
load_driver() {
  local module file unloaded=" ${S[modules]:-}"
  find_boot
  for file in "$ROOT$HANDOVER"/*.state; do
    find_noted "$file" boot
    [[ $AS_NOTED == "$THIS_BOOT" ]] || continue
    find_noted "$file" modules
    unloaded+=" $AS_NOTED"
  done
  for module in nvidia nvidia_modeset nvidia_drm nvidia_uvm; do
    [[ "$unloaded " != *" $module "* ]] || load_again "$module" || return 1
  done
  [[ -r $ROOT$NVIDIA_PROC/version ]] || load_again nvidia
}

# load_again NAME - one that can't be loaded is said, and no reason to end.
load_again() {
  local status=0
  bounded 120 modprobe "$1" || status=$?
  ((status != 0)) || return 0
  if ((status == 124)) && is_loading; then
    stuck "loading $1"
    return 1
  fi
  say "$1 could not be loaded: ${OUTPUT:-no answer in time}"
  ((status != 124))
}

# attach - once more where the step was cut short, such as by a kill: the card would stay without a driver.
attach() {
  local status
  for _ in first second; do
    status=0
    in_unit 90 step_attach || status=$?
    [[ ! $status =~ ^12[45]$ ]] || return "$status"
    ((status != 0)) || ! is_on nvidia "$GPU" || return 0
  done
  return 1
}

# is_served - has the driver got the card, and does it answer for it?
is_served() { is_on nvidia "$GPU" && let_clients_in && bounded 60 nvidia-smi -i "$GPU" --query-gpu=pci.bus_id --format=csv,noheader; }

# let_clients_in - again, where the card was drained. Status 1: it still is. (One that can't be drained answers with an error, too.)
let_clients_in() {
  bounded 30 nvidia-smi drain -p "$GPU" -m 0 && return 0
  bounded 30 nvidia-smi drain -q -p "$GPU"
  [[ $OUTPUT == *"not draining"* || $OUTPUT != *draining* ]]
}

# bind_again - a card that came back and that no driver took is given to its driver once more. Status 1: that waits in the kernel. One that somebody has
# given to another driver since is that person's.
bind_again() {
  local status=0
  [[ -n ${S[owed]:-} && ! -L $PCI/$GPU/driver ]] && is_that_card && is_alive || return 0
  is_busy || status=$?
  ((status == 1)) || return 1
  load_driver || return 1
  status=0
  attach || status=$?
  ((status != 124)) || { stuck "giving it to NVIDIA's driver" && return 1; }
}
