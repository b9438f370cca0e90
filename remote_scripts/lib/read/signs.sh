#!/usr/bin/env bash
# What is wrong with cards or with how the host boots, as the kernel and Proxmox VE's tools say it: keys of read_host.sh's answer.
# Needs: common, boot, lines, read/devices
#
# Gives: signs; head_and_tail MOST LINE... -> TEXT. Variables: SIGNS (an extended regular expression; empty: the log isn't read), BOOT_STATUS.

# What is wrong with cards or with how the host boots, as the kernel and Proxmox VE's tools say it; what it means is decided elsewhere.
signs() {
  local TEXT path code line said=() warnings='' lost=() asked=() had='' unsafe=false
  [[ -z $SIGNS ]] || read_kernel_log
  [[ -z $SIGNS ]] || mapfile -t said < <(kernel_says | grep -iE "$SIGNS" || :)
  for path in "$PCI"/*; do
    code=''
    [[ ! -r $path/class ]] || read -r code <"$path/class"
    [[ $code == 0x03* || $code == 0x12* || $code == 0x0403* || $path/driver -ef $ROOT/sys/bus/pci/drivers/vfio-pci ]] || continue
    [[ ! -e $path/config ]] || asked+=("$path")
  done
  find_lost "${asked[@]}"
  # As the module has it, or will have it when it is loaded.
  { read -r had <"$ROOT/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts" || :; } 2>/dev/null
  if [[ $had == Y ]] ||
    has_line '^[[:space:]]*options[[:space:]]+vfio[-_]iommu[-_]type1[[:space:]](.*[[:space:]])?allow_unsafe_interrupts=[1yY]' "$ROOT"/etc/modprobe.d/*.conf; then
    unsafe=true
  fi
  while IFS= read -r line; do [[ $line != 'WARN: '* ]] || warnings+=${warnings:+$'\n'}$line; done <<<"$BOOT_STATUS"
  head_and_tail 1000 "${said[@]}"
  json_entry kernel_log "$TEXT"
  printf ',"lost":'
  json_list "${lost[@]}"
  printf ',"unsafe_interrupts":%s' "$unsafe"
  json_entry boot_warnings "$warnings"
}

# find_lost FOLDER... - adds to `lost` of the caller the functions whose configuration space can't be read, or doesn't read as one. Of all at once; where that doesn't
# end, or not of every one so much is read, each for itself: reading a card that is gone can take long.
find_lost() {
  local path one lines=()
  # shellcheck disable=SC2016 # that bash's own
  (($# < 2)) || mapfile -t lines < <(exec_within 5 bash -c 'exec od -An -v -tx1 -w16 < <(exec head -q -c 16 "$@")' bash "${@/%//config}" 2>/dev/null)
  if ((${#lines[@]} > 0 && ${#lines[@]} == $#)) && ((${#lines[-1]} == 48)); then
    for path in "$@"; do
      note_if_lost "$path" "${lines[0]}"
      lines=("${lines[@]:1}")
    done
    return 0
  fi
  for path in "$@"; do
    one=$(exec_within 5 od -An -v -tx1 -N16 "$path/config" 2>/dev/null) || one=ffffffffffffffffffffffffffffffff
    note_if_lost "$path" "$one"
  done
}

# A virtual function has no ids there, but a class.
note_if_lost() { # FOLDER BYTES
  local bytes=${2//[[:space:]]/}
  [[ $bytes != ffffffffffffffffffffffffffffffff && $bytes != 0100ffff* ]] || lost+=("${1##*/}")
}

# head_and_tail MOST LINE... - sets TEXT: these lines, of more than so many the first and the last ones.
head_and_tail() {
  local IFS=$'\n' most=$1
  shift
  (($# <= most)) || set -- "${@:1:most/2}" "… $(($# - most)) lines are left out here …" "${@:$#-most/2+1}"
  cut_end "$*"
}
