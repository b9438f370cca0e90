#!/usr/bin/env bash
# Why a card can't go to a VM now: asked before anything is changed.
# Needs: common, lines, handover/places, handover/state, handover/card, handover/holders, handover/users
#
# Gives: refused VMID -> REFUSED; names_card VMID.

# refused VMID - status 0, with REFUSED: there is a reason.
refused() {
  local function driver
  REFUSED=''
  find_boot
  find_option "$1" lock
  if ! is_that_card; then
    REFUSED="another device than it is at ${FUNCTIONS[*]} now; \`pulumi up --refresh\` finds it again"
  elif ! is_alive; then
    REFUSED="it doesn't answer: its configuration space can't be read"
  elif [[ -e $STATE/armed && $(sed -n 's/^boot //p' "$STATE/armed") != "$THIS_BOOT" ]]; then
    REFUSED="this boot of the host isn't confirmed yet, which pulumi up does"
  elif [[ $OPTION == backup ]]; then
    refuse_backup "$1"
  elif ! is_on nvidia "$GPU"; then
    driver=$(card_driver "$GPU")
    REFUSED="NVIDIA's driver doesn't have it, but ${driver:-none}"
  else
    for function in "${FUNCTIONS[@]}"; do
      find_value "$PCI/$function/sriov_numvfs"
      [[ ! $FOUND_VALUE =~ ^$|[1-9] || ! -r $PCI/$function/sriov_numvfs ]] || REFUSED="$function has virtual functions (SR-IOV)"
      find_value "$PCI/$function/boot_vga"
      [[ $FOUND_VALUE != 1 ]] || REFUSED="it is this host's screen (boot_vga)"
      [[ -n $FOUND_VALUE || ! -e $PCI/$function/boot_vga ]] || REFUSED="whether it is this host's screen can't be read (boot_vga of $function)"
    done
  fi
  [[ -z $REFUSED ]] || return 0
  if is_divided || is_reserved "$1" || is_held_by_drm || is_console; then return 0; fi
  if find_users; then return 1; fi
}

refuse_backup() { REFUSED="a backup of VM $1, which was off, would start it: the card stays with the containers. Back the VM up while it runs"; } # VMID

# names_card VMID - does a hostpci option of the VM give the card, by its address or by a mapping, of which the lines of this node count? A
# mapping that isn't known may.
names_card() {
  local line lines=() host mapping slot=${GPU%.*}
  [[ -e $ROOT/etc/pve/qemu-server/$1.conf ]] || return 1
  # One that can't be read may.
  line=$(cat "$ROOT/etc/pve/qemu-server/$1.conf" 2>/dev/null) || return 0
  mapfile -t lines <<<"$line"
  for line in "${lines[@]}"; do
    [[ $line != '['* ]] || return 1
    [[ $line =~ ^hostpci[0-9]+:[[:space:]]*(.*)$ ]] || continue
    line=,${BASH_REMATCH[1]},
    mapping='' host=''
    if [[ $line =~ ,mapping=([^,]+), ]]; then mapping=${BASH_REMATCH[1]}; elif [[ $line =~ ,(host=)?([0-9a-fA-F:.\;]+), ]]; then host=${BASH_REMATCH[2],,}; fi
    if [[ -n $mapping ]]; then
      find_mapping "$mapping"
      [[ -n $KNOWN && $KNOWN != *"$slot"* && $KNOWN != *"path=${slot#0000:}"* ]] || return 0
    elif [[ $host == *"${slot#0000:}"* ]]; then
      return 0
    fi
  done
  return 1
}

# find_mapping NAME - sets KNOWN: its name, and its lines for this node; nothing: it isn't known. Which node this is stays the same while this runs.
NODE_HERE=unasked
find_mapping() {
  local line on=no
  KNOWN=''
  if [[ $NODE_HERE == unasked ]]; then
    NODE_HERE=$(readlink "$ROOT/etc/pve/local" 2>/dev/null) || NODE_HERE=''
    NODE_HERE=${NODE_HERE##*/}
  fi
  read_lines "$ROOT/etc/pve/mapping/pci.cfg"
  for line in "${READ_LINES[@]}"; do
    if [[ $line == [!$' \t']* ]]; then
      on=no
      [[ ${line%%[$' \t']*} != "$1" ]] || { on=yes && KNOWN+=$1$'\n'; }
    elif [[ $on == yes && (-z $NODE_HERE || "$line," == *"node=$NODE_HERE,"*) ]]; then
      KNOWN+=$line$'\n'
    fi
  done
}

is_divided() {
  bounded 30 nvidia-smi -i "$GPU" --query-gpu=mig.mode.current --format=csv,noheader || {
    REFUSED="nvidia-smi doesn't answer for it: ${OUTPUT:-no text}"
    return 0
  }
  [[ $OUTPUT != *Enabled* ]] || REFUSED="MIG is on: it is divided"
  [[ -n $REFUSED ]]
}

# is_reserved VMID - has another VM that lives reserved it (PVE::QemuServer::PCI)?
is_reserved() {
  local id vmid how text='' file=$ROOT/run/qemu-server/pci-id-reservations
  [[ ! -e $file ]] || text=$(cat "$file" 2>/dev/null) || { REFUSED="which VM has it can't be read (${file#"$ROOT"})" && return 0; }
  while read -r id vmid how; do
    [[ $vmid != "$1" && " ${FUNCTIONS[*]} " == *" $id "* ]] || continue
    if [[ $how == pid:* ]]; then
      [[ -d $ROOT/proc/${how#pid:} ]] || continue
    elif [[ $how == time:* ]]; then
      ((${how#time:} > EPOCHSECONDS)) || continue
    fi
    REFUSED="VM $vmid has it, or is starting with it"
    return 0
  done <<<"$text"
  return 1
}

# is_held_by_drm - nvidia-drm opens the card itself with modeset, and lets go only from 580.105.08 on (NVIDIA/open-gpu-kernel-modules), unless it can be unloaded.
is_held_by_drm() {
  local version
  find_value "$ROOT/sys/module/nvidia_drm/parameters/modeset"
  [[ $FOUND_VALUE == Y || (-z $FOUND_VALUE && -e $ROOT/sys/module/nvidia_drm/parameters/modeset) ]] || return 1
  ! is_only || return 1
  version=$(nvidia_version)
  [[ $(printf '580.105.08\n%s\n' "${version:-0}" | sort -V | head -n 1) != 580.105.08 ]] || return 1
  REFUSED="NVIDIA's driver $version with nvidia_drm modeset=1 never lets go of one card of several: update it to 580.105.08 or later, or set modeset=0"
}

# is_console - does the host's text console draw on it?
is_console() {
  local function console
  for function in "${FUNCTIONS[@]}"; do
    [[ -e $PCI/$function/graphics/fb0 ]] || continue
    for console in "$ROOT"/sys/class/vtconsole/*; do
      [[ -e $console/name ]] || continue
      find_value "$console/name"
      [[ -z $FOUND_VALUE || $FOUND_VALUE == *"frame buffer"* ]] || continue
      find_value "$console/bind"
      [[ -z $FOUND_VALUE || $FOUND_VALUE == 1 ]] || continue
      REFUSED="the host's console draws on it (fb0)"
      return 0
    done
  done
  return 1
}
