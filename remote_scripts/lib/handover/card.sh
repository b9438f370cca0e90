#!/usr/bin/env bash
# A card that is handed over: its functions, their drivers, whether it answers, and what is done with them by sysfs.
# Needs: handover/state, nvidia, read/devices
#
# Gives: read_card NAME -> CARD, FUNCTIONS, IDS, GPU, VMS, SHUT_DOWN; cards_of VMID; card_driver ADDRESS; is_on DRIVER ADDRESS, all_on DRIVER; value_of FILE; is_that_card; is_alive; is_sole, is_only, drm_names;
#   step_claim, step_unbind, step_bind, step_release, step_attach, step_nodes CARD; deep_sleepers. Variables: CARDS (a line each: NAME, ADDRESS=IDS,...
#   with its graphics function first, VMID,..., and `holders` where only those containers are shut down that have it open).
# How often it is looked whether a card answers, a second apart, before it is taken for dead.
LOOKS=3

read_card() { # NAME
  local name words word vms how
  UNSURE=no
  CARD='' FUNCTIONS=() GPU='' VMS='' SHUT_DOWN=all
  declare -gA IDS=()
  while read -r name words vms how; do
    [[ $name == "$1" ]] || continue
    CARD=$name VMS=${vms//,/ } SHUT_DOWN=${how:-all}
    for word in ${words//,/ }; do
      FUNCTIONS+=("${word%%=*}")
      IDS[${word%%=*}]=${word#*=}
    done
    GPU=${FUNCTIONS[0]}
  done <<<"$CARDS"
  [[ -n $CARD ]]
}

# cards_of VMID - names of those that it may take; without VMID: all.
cards_of() {
  local name vms
  while read -r name _ vms _; do
    [[ -z $name || (-n ${1:-} && ",$vms," != *",$1,"*) ]] || printf '%s\n' "$name"
  done <<<"$CARDS"
}

card_driver() { # ADDRESS
  local link
  link=$(readlink "$PCI/$1/driver" 2>/dev/null) || return 0
  printf '%s' "${link##*/}"
}

# is_on DRIVER ADDRESS - by bash itself: a host has a hundred functions.
is_on() { [[ $PCI/$2/driver -ef ${PCI%devices}drivers/$1 ]]; }

all_on() { # DRIVER
  local function
  for function in "${FUNCTIONS[@]}"; do
    is_on "$1" "$function" || return 1
  done
}

# is_that_card - hardware may have been changed, or buses numbered anew, since it was configured.
is_that_card() {
  local function
  for function in "${FUNCTIONS[@]}"; do
    [[ "$(value_of "$PCI/$function/vendor") $(value_of "$PCI/$function/device")" == "0x${IDS[$function]%:*} 0x${IDS[$function]#*:}" ]] || return 1
  done
}

# is_alive - does every function's configuration space read as what it is? 0: yes; 1: no: something else was read, again and again, or it has gone from the
# bus; 2: it can't be told, since nothing was read. Of a card that doesn't answer, all bits are ones; and to read it may take for ever.
is_alive() {
  local function ids text look status=0
  for function in "${FUNCTIONS[@]}"; do
    ids=${IDS[$function]}
    for ((look = LOOKS; look > 0; look--)); do
      text=$(first_bytes "$function")
      [[ $text != "${ids:2:2}${ids:0:2}${ids:7:2}${ids:5:2}" ]] || break
      ((look == 1)) || sleep 1
    done
    ((look == 0)) || continue
    if [[ -d $PCI && ! -e $PCI/$function || $text =~ ^[0-9a-f]{8}$ ]]; then return 1; fi
    status=2
  done
  return "$status"
}

# first_bytes ADDRESS - as hexadecimal digits; empty: they can't be read. By a pipe, since /run may be full.
first_bytes() {
  local pipe text=''
  exec {pipe}< <(
    [[ -z ${LOCK:-} ]] || exec {LOCK}>&-
    [[ -z ${HANDING:-} ]] || exec {HANDING}>&-
    exec od -An -N4 -tx1 "$PCI/$1/config" 2>/dev/null
  )
  IFS= read -r -t 5 -u "$pipe" text || :
  exec {pipe}<&-
  printf '%s' "${text//[[:space:]]/}"
}

# is_sole - has this host no other card of NVIDIA's, whoever has that? Another one could come up under this one's numbers while it is away.
is_sole() {
  local path vendor class
  for path in "$PCI"/*; do
    [[ " ${FUNCTIONS[*]} " != *" ${path##*/} "* ]] || continue
    vendor='' class=0x03
    { read -r vendor <"$path/vendor"; } 2>/dev/null || :
    [[ $vendor == 0x10de ]] || continue
    # A chipset has other functions, too; of what says nothing, it isn't known.
    { read -r class <"$path/class"; } 2>/dev/null || :
    [[ $class != 0x03* ]] || return 1
  done
}

# is_only - has NVIDIA's driver no other card?
is_only() {
  local path address
  for path in "$PCI"/*; do
    address=${path##*/}
    ! is_on nvidia "$address" || [[ " ${FUNCTIONS[*]} " == *" $address "* ]] || return 1
  done
}

# drm_names - of its nodes in /dev/dri.
drm_names() {
  local function path
  for function in "${FUNCTIONS[@]}"; do
    for path in "$PCI/$function"/drm/card* "$PCI/$function"/drm/renderD*; do
      [[ ! -e $path ]] || printf '%s ' "${path##*/}"
    done
  done
}

# value_of FILE - of an attribute in sysfs, its first line; nothing where it can't be read.
value_of() {
  local value=''
  { IFS= read -r value <"$1" || :; } 2>/dev/null
  printf '%s' "$value"
}

write_value() { { printf '%s\n' "$1" >"$2"; } 2>/dev/null; }

# The steps. What a function has now decides, so that each can be done again.

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
  for function in "${FUNCTIONS[@]}"; do [[ $(value_of "$PCI/$function/d3cold_allowed") != 1 ]] || printf '%s ' "$function"; done
}

# It loads nvidia-uvm.
step_nodes() { make_nvidia_nodes 2>/dev/null; }
