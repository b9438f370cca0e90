#!/usr/bin/env bash
# A card that is handed over: its functions, their drivers, and whether it answers.
# Needs: handover/state
#
# Gives: read_card NAME -> CARD, FUNCTIONS, IDS, GPU, VMS; find_cards [VMID] -> NAMES; card_driver ADDRESS; is_on DRIVER ADDRESS, all_on DRIVER; find_value FILE -> FOUND_VALUE; is_that_card; is_alive; is_only; find_drm_names -> DRM_NAMES.
#   Variables: CARDS (a line each: NAME, ADDRESS=IDS,... with its graphics function first, VMID,...).
# How often it is looked whether a card answers, a second apart, before it is taken for dead.
LOOKS=3
PCI=$ROOT/sys/bus/pci/devices

read_card() { # NAME
  local name words word vms
  UNSURE=no
  CARD='' FUNCTIONS=() GPU='' VMS=''
  declare -gA IDS=()
  while read -r name words vms; do
    [[ $name == "$1" ]] || continue
    CARD=$name VMS=${vms//,/ }
    for word in ${words//,/ }; do
      FUNCTIONS+=("${word%%=*}")
      IDS[${word%%=*}]=${word#*=}
    done
    GPU=${FUNCTIONS[0]}
  done <<<"$CARDS"
  [[ -n $CARD ]]
}

# find_cards [VMID] - sets NAMES: of those that it may take; without VMID: all.
find_cards() {
  local name vms
  NAMES=()
  while read -r name _ vms; do
    [[ -z $name || (-n ${1:-} && ",$vms," != *",$1,"*) ]] || NAMES+=("$name")
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
  local function vendor
  for function in "${FUNCTIONS[@]}"; do
    find_value "$PCI/$function/vendor"
    vendor=$FOUND_VALUE
    find_value "$PCI/$function/device"
    [[ "$vendor $FOUND_VALUE" == "0x${IDS[$function]%:*} 0x${IDS[$function]#*:}" ]] || return 1
  done
}

# is_alive - does every function's configuration space read as what it is? 0: yes; 1: no: something else was read, again and again, or it has gone from the
# bus; 2: it can't be told, since nothing was read. Of a card that doesn't answer, all bits are ones; and to read it may take for ever.
is_alive() {
  local function ids BYTES look status=0
  for function in "${FUNCTIONS[@]}"; do
    ids=${IDS[$function]}
    for ((look = LOOKS; look > 0; look--)); do
      read_first_bytes "$function"
      [[ $BYTES != "${ids:2:2}${ids:0:2}${ids:7:2}${ids:5:2}" ]] || break
      ((look == 1)) || sleep 1
    done
    ((look == 0)) || continue
    if [[ -d $PCI && ! -e $PCI/$function || $BYTES =~ ^[0-9a-f]{8}$ ]]; then return 1; fi
    status=2
  done
  return "$status"
}

# read_first_bytes ADDRESS - sets BYTES, as hexadecimal digits; empty: they can't be read. By a pipe, since /run may be full.
read_first_bytes() {
  local pipe text=''
  exec {pipe}< <(
    [[ -z ${LOCK:-} ]] || exec {LOCK}>&-
    [[ -z ${HANDING:-} ]] || exec {HANDING}>&-
    exec od -An -N4 -tx1 "$PCI/$1/config" 2>/dev/null
  )
  IFS= read -r -t 5 -u "$pipe" text || :
  exec {pipe}<&-
  BYTES=${text//[[:space:]]/}
}

# is_only - has NVIDIA's driver no other card?
is_only() {
  local path address
  for path in "$PCI"/*; do
    address=${path##*/}
    ! is_on nvidia "$address" || [[ " ${FUNCTIONS[*]} " == *" $address "* ]] || return 1
  done
}

# find_drm_names - sets DRM_NAMES: of its nodes in /dev/dri, a blank behind each.
find_drm_names() {
  local function path
  DRM_NAMES=''
  for function in "${FUNCTIONS[@]}"; do
    for path in "$PCI/$function"/drm/card* "$PCI/$function"/drm/renderD*; do
      [[ ! -e $path ]] || DRM_NAMES+="${path##*/} "
    done
  done
}

# find_value FILE - sets FOUND_VALUE: of an attribute in sysfs, its first line; nothing where it can't be read.
find_value() {
  FOUND_VALUE=''
  { IFS= read -r FOUND_VALUE <"$1" || :; } 2>/dev/null
}
