#!/usr/bin/env bash
# NVIDIA's driver on a host, and its device nodes. The kernel makes none of them but those in /dev/dri; who needs one makes it.
# Majors come from /proc/devices (uvm's and caps' change with kernels), minors of cards from /proc/driver/nvidia/gpus.
# Needs: common, lines
#
# Gives: find_loaded -> LOADED, LOADED_FLAVOUR, nvidia_version; find_major DRIVER, find_minor ADDRESS -> NUMBER; find_served -> SERVED; find_nodes PATH... -> MAJOR, MINOR, MODE (arrays of the caller's);
#   find_unmade -> UNMADE; make_nvidia_nodes.
NVIDIA_PROC=/proc/driver/nvidia
# What `systemctl enable` makes of the service that makes the nodes at boot.
NODES_ENABLED=/etc/systemd/system/multi-user.target.wants/homelab-nvidia-nodes.service

# find_loaded - sets LOADED: the version of the modules that are loaded, and LOADED_FLAVOUR: open or proprietary; nothing where none are.
# nvidia_version - says that version.
find_loaded() {
  local line=''
  LOADED='' LOADED_FLAVOUR=''
  [[ -r $ROOT$NVIDIA_PROC/version ]] || return 0
  LOADED_FLAVOUR=proprietary
  read_lines "$ROOT$NVIDIA_PROC/version"
  for line in "${READ_LINES[@]}"; do
    [[ $line != *'Open Kernel Module'* ]] || LOADED_FLAVOUR=open
    [[ -n $LOADED || ! $line =~ ([0-9]{3,}\.[0-9]+(\.[0-9]+)?) ]] || LOADED=${BASH_REMATCH[1]}
  done
}

nvidia_version() {
  find_loaded
  printf '%s\n' "$LOADED"
}

# find_major DRIVER - sets NUMBER: its major number; nothing while its module isn't loaded.
find_major() {
  local line major name
  NUMBER=''
  read_lines "$ROOT/proc/devices"
  for line in "${READ_LINES[@]}"; do
    read -r major name _ <<<"$line"
    [[ $major != Block ]] || return 0
    [[ $name != "$1" ]] || { NUMBER=$major && return 0; }
  done
}

# find_minor ADDRESS - sets NUMBER: that of the card's /dev/nvidiaN; nothing where there is none.
find_minor() {
  find_first "$ROOT$NVIDIA_PROC/gpus/$1/information" '^Device Minor:[[:space:]]*([0-9]+)'
  NUMBER=$FIRST
}

# find_served - sets SERVED: of each node that the loaded modules serve PATH MAJOR MINOR MODE(octal).
find_served() {
  local file minor major mode
  SERVED=()
  [[ -r $ROOT$NVIDIA_PROC/version ]] || return 0
  # 195 is NVIDIA's own (Documentation/admin-guide/devices.txt); only its name in /proc/devices has changed.
  SERVED+=('/dev/nvidiactl 195 255 666')
  for file in "$ROOT$NVIDIA_PROC"/gpus/*/information; do
    [[ -r $file ]] || continue
    file=${file%/*}
    find_minor "${file##*/}"
    SERVED+=("/dev/nvidia$NUMBER 195 $NUMBER 666")
  done
  find_major nvidia-modeset
  [[ -z $NUMBER ]] || SERVED+=('/dev/nvidia-modeset 195 254 666')
  find_major nvidia-uvm
  [[ -z $NUMBER ]] || SERVED+=("/dev/nvidia-uvm $NUMBER 0 666" "/dev/nvidia-uvm-tools $NUMBER 1 666")
  find_major nvidia-caps
  major=$NUMBER
  [[ -n $major ]] || return 0
  for file in "$ROOT$NVIDIA_PROC"/capabilities/mig/*; do
    [[ -r $file ]] || continue
    find_first "$file" '^DeviceFileMinor: ([0-9]+)'
    minor=$FIRST
    find_first "$file" '^DeviceFileMode: ([0-9]+)'
    printf -v mode %o "$FIRST"
    [[ -z $minor ]] || SERVED+=("/dev/nvidia-caps/nvidia-cap$minor $major $minor $mode")
  done
}

# find_nodes PATH... - of each that is there its numbers (decimal) and its mode (octal), by path: in MAJOR, MINOR and MODE, of one that is no node zeros.
# One program looks at all.
find_nodes() {
  local path major minor mode existing=()
  MAJOR=() MINOR=() MODE=()
  for path in "$@"; do [[ -z $path || ! -e $ROOT$path ]] || existing+=("$ROOT$path"); done
  ((${#existing[@]} > 0)) || return 0
  while read -r major minor mode path; do
    path=${path#"$ROOT"}
    MAJOR[$path]=$((16#$major)) MINOR[$path]=$((16#$minor)) MODE[$path]=$mode
  done < <(stat -c '%t %T %a %n' "${existing[@]}")
}

# find_unmade - sets UNMADE: those of SERVED that aren't there, or have other numbers.
find_unmade() {
  local line path major minor
  declare -A MAJOR=() MINOR=() MODE=()
  UNMADE=()
  find_served
  find_nodes "${SERVED[@]%% *}"
  for line in "${SERVED[@]}"; do
    read -r path major minor _ <<<"$line"
    [[ "${MAJOR[$path]:-} ${MINOR[$path]:-}" == "$major $minor" ]] || UNMADE+=("$line")
  done
}

# make_nvidia_nodes - those that are missing, or have numbers of an earlier boot. Without nvidia-uvm there is no CUDA; nvidia comes
# with it. The program that runs at boot is this file and a call of this.
make_nvidia_nodes() {
  local line path major minor mode
  modprobe nvidia-uvm || printf 'nvidia-uvm could not be loaded\n' >&2
  find_unmade
  for line in "${UNMADE[@]}"; do
    read -r path major minor mode <<<"$line"
    [[ -d $ROOT${path%/*} ]] || mkdir -p "$ROOT${path%/*}"
    [[ ! -e $ROOT$path && ! -L $ROOT$path ]] || rm -f "$ROOT$path"
    mknod -m "$mode" "$ROOT$path" c "$major" "$minor"
    printf 'made %s (%s:%s)\n' "$path" "$major" "$minor" >&2
  done
}
