#!/usr/bin/env bash
# Reads what an NVIDIA stack is planned from, on a host, in a VM or in a container, and how far what was put there is still so.
# Changes nothing, and asks no repository.
# Needs: files, driver, kernel, links, packages/installed, read/system_drift, read/text, os_release, boot, words, vfio_ids
#
# Arguments: ASK (packages whose offered versions are told, separated by spaces), PASSED (slots of the host's cards that VMs get, separated by
#   spaces), STAYING (the same of cards that are with the host's driver from its next start on, also where vfio-pci has them now),
#   RELEASED (yes: so is a card, PASSED left out, that homelab.vfio= alone has bound for this boot; else it doesn't count).
# Output: one JSON object; homelab/nvidia/reading.py models it. `drift` has a line for each thing that isn't as the steps left it, which begins
#   with the step: repository, driver, boot, cuda, toolkit, libraries.
# Verbs: read_system.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin

read_system() {
  local cards=() steps=() step nouveau=no version flavour
  find_loaded
  version=$LOADED flavour=$LOADED_FLAVOUR
  find_cards
  printf '{"bootId":'
  string_of /proc/sys/kernel/random/boot_id
  find_os_value ID
  entry_or_null distribution "$OS_VALUE"
  find_os_value VERSION_ID
  entry_or_null version "$OS_VALUE"
  find_architecture
  json_entry architecture "$ARCHITECTURE"
  printf ',"kernels":'
  find_kernels host
  json_list "${KERNELS[@]}"
  find_running
  json_entry running "$RUNNING"
  secure_boot
  printf ',"cards":'
  json_list "${cards[@]}"
  [[ $nouveau == yes ]] && printf ',"nouveau":true' || printf ',"nouveau":false'
  json_entry loaded "$version"
  entry_or_null loadedFlavour "$flavour"
  if is_container; then
    json_entry hostDriver "$version"
  else
    printf ',"hostDriver":null'
  fi
  read_installed
  printf ',"runtimes":'
  runtimes
  find_free /usr
  printf ',"room":%s' "${FREE:-null}"
  printf ',"offered":'
  offered
  for step in "$STATE"/steps/*; do
    [[ -f $step ]] || continue
    step=${step##*/}
    steps+=("${step#nvidia-}")
  done
  files_drift
  packages_drift
  driver_drift
  printf ',"steps":'
  json_list "${steps[@]}"
  printf ',"drift":'
  json_list "${DRIFT[@]}"
  printf '}\n'
}

entry_or_null() { if [[ -n $2 ]]; then json_entry "$1" "$2"; else printf ',"%s":null' "$1"; fi; } # KEY TEXT

# find_cards - sets `cards` and `nouveau`: a container's are those whose node it has; a host's those that no VM is to have.
find_cards() {
  local device class driver file slot word held TEXT='' ours='' given=''
  if is_container; then
    for file in "$ROOT$NVIDIA_PROC"/gpus/*/information; do
      [[ -r $file ]] || continue
      device=${file%/*} device=${device##*/}
      find_minor "$device"
      device=$ROOT/sys/bus/pci/devices/$device
      [[ ! -e $ROOT/dev/nvidia$NUMBER || ! -r $device/vendor ]] || { find_ids "$device" && cards+=("$FOUND_IDS"); }
    done
    return 0
  fi
  [[ $RELEASED != yes ]] || read_text "$ROOT/proc/cmdline"
  for word in $TEXT; do
    [[ $word != homelab.vfio=* ]] || ours=,${word#*=},
  done
  [[ -z $ours$STAYING ]] || ids_of_next_boot
  for device in "$ROOT"/sys/bus/pci/devices/*; do
    class=''
    [[ ! -r $device/class ]] || read -r class <"$device/class" || :
    [[ $class == 0x03* ]] || continue
    find_linked "$device/driver"
    driver=$LINKED slot=${device##*/}
    if [[ $driver == vfio-pci && -n $ours$STAYING ]]; then
      # What somebody else gives to vfio-pci as well stays there, unless it is taken from ids (homelab/host/released.py).
      if has_override "$slot" || { [[ " $STAYING " != *" ${slot%.*} "* ]] && names_device "$given" "$device"; }; then continue; fi
      find_ids "$device"
      [[ $ours != *",$slot=$FOUND_IDS,"* ]] || driver=released
    fi
    [[ ($driver != vfio-pci && " $PASSED " != *" ${slot%.*} "*) || " $STAYING " == *" ${slot%.*} "* ]] || continue
    find_ids "$device"
    cards+=("$FOUND_IDS")
  done
  find_held
  for held in "${HELD_CARDS[@]}"; do
    [[ " $PASSED " == *" ${held%.* *} "* ]] || nouveau=yes
  done
}

# ids_of_next_boot - of find_cards, sets `given`: those that somebody else gives to vfio-pci from this host's next start on, with commas between them.
ids_of_next_boot() {
  local word
  find_given
  for word in "${VFIO_GIVEN[@]}"; do given+=${word#*$'\t'},; done
  find_boot_loader
  is_configurable || return 0
  find_configured others
  for word in $CONFIGURED; do
    word=${word//\"/}
    [[ $word != vfio[-_]pci.ids=* ]] || given+=${word#*=},
  done
}

# find_ids FOLDER - of a device: sets FOUND_IDS, vendor:device.
find_ids() {
  local vendor='' id=''
  { read -r vendor <"$1/vendor" && read -r id <"$1/device"; } || :
  FOUND_IDS=${vendor#0x}:${id#0x}
}

# secure_boot - whether the kernel takes only signed modules, and whether the key that DKMS signs with is among its own.
secure_boot() {
  local on=null enrolled=null file key parts=() value
  file=$ROOT/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c
  if is_container; then
    :
  elif [[ ! -d $ROOT/sys/firmware/efi ]]; then
    on=false
  elif [[ -r $file ]]; then
    # Four bytes of attributes, then the value. Bash has no zero bytes: a blank stands for each.
    mapfile -d '' -t parts <"$file" || :
    printf -v value '%s ' "${parts[@]}"
    on=false
    [[ ${value:4:1} != $'\x01' ]] || on=true
  else
    case $(mokutil --sb-state 2>/dev/null) in
      *enabled*) on=true ;;
      *disabled*) on=false ;;
    esac
  fi
  if [[ $on == true ]] && command -v mokutil >/dev/null; then
    enrolled=false
    # Debian's and Proxmox VE's key, Ubuntu's.
    for key in /var/lib/dkms/mok.pub /var/lib/shim-signed/mok/MOK.der; do
      [[ ! -r $ROOT$key || $(mokutil --test-key "$ROOT$key" 2>&1) != *"already enrolled"* ]] || enrolled=true
    done
  fi
  printf ',"secureBoot":%s,"mokEnrolled":%s' "$on" "$enrolled"
}

runtimes() {
  local found=()
  [[ -z ${PRESENT["docker.io"]:-}${PRESENT["docker-ce"]:-} ]] || found+=(docker)
  [[ -z ${PRESENT["containerd"]:-}${PRESENT["containerd-stable"]:-}${PRESENT["containerd.io"]:-} ]] || found+=(containerd)
  [[ -z ${PRESENT["podman"]:-} ]] || found+=(podman)
  [[ ! -x $ROOT/usr/local/bin/k3s ]] || found+=(k3s)
  json_list "${found[@]}"
}

offered() {
  local names
  [[ -n $ASK ]] || { printf null && return; }
  read -ra names <<<"$ASK"
  offered_json "${names[@]}"
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
