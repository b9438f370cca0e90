#!/usr/bin/env bash
# NVIDIA's driver as it is installed and loaded: flavour, modules, libraries, kernels.
# STATE/nvidia-driver: what the step for the driver has left: version, source (packages, run or found: somebody else's), target, flavour.
# Needs: files, nvidia, kernel, links
#
# Gives: is_container; find_kernels TARGET -> KERNELS; find_module KERNEL -> MODULE_VERSION, MODULE_FLAVOUR; find_library SONAME -> LIBRARY,
#   library_version, run_version; find_held -> HELD_CARDS, FREE_CARD, BOUND_CARD; read_driver_note -> NOTED_VERSION, NOTED_SOURCE, NOTED_FLAVOUR, NOTED_TARGET; update_phase;
#   is_wanted -> VERSION, is_version_wanted, has_libraries, lacking_libraries, fits VERSION; offered_json NAME...

is_container() { [[ ${container:-} == lxc || -e $ROOT/run/systemd/container ]]; }

# find_kernels TARGET - sets KERNELS: those that must have the module, the oldest first. On a host it is each that can be booted: any of them may be the next
# one. A container has none.
find_kernels() {
  local path names
  KERNELS=()
  if [[ $1 != host ]]; then
    find_running
    KERNELS=("$RUNNING")
  elif ! is_container; then
    for path in "$ROOT"/boot/vmlinuz-*; do
      [[ ! -e $path && ! -L $path ]] || KERNELS+=("${path##*/vmlinuz-}")
    done
    ((${#KERNELS[@]} > 1)) || return 0
    printf -v names '%s\n' "${KERNELS[@]}"
    mapfile -t KERNELS < <(sort -V <<<"${names%$'\n'}")
  fi
}

# find_module KERNEL - sets MODULE_VERSION and MODULE_FLAVOUR, of the module that this kernel would load; empty where it has none.
find_module() {
  local key value
  MODULE_VERSION='' MODULE_FLAVOUR=''
  while read -r key value; do
    case $key in
      version:) MODULE_VERSION=$value ;;
      license:) if [[ $value == NVIDIA ]]; then MODULE_FLAVOUR=proprietary; else MODULE_FLAVOUR=${value:+open}; fi ;;
    esac
  done < <(modinfo -k "$1" nvidia 2>/dev/null)
}

# library_version - of the libraries that nvidia-smi and CUDA programs load.
library_version() {
  find_library libnvidia-ml.so.1
  printf '%s' "${LIBRARY##*.so.}"
}

# find_library SONAME - sets LIBRARY: the file that it leads to, which mostly lies beside it; nothing where the driver has none.
find_library() {
  local folder
  for folder in "$ROOT"/usr/lib/x86_64-linux-gnu "$ROOT"/usr/lib/x86_64-linux-gnu/nvidia/*; do
    [[ -e $folder/$1 ]] || continue
    for LIBRARY in "$folder/${1%.so.*}".so.[0-9][0-9][0-9].*; do
      [[ -L $LIBRARY || ! $LIBRARY -ef $folder/$1 || ! $LIBRARY =~ \.so\.[0-9]{3}\.[0-9.]+$ ]] || return 0
    done
    LIBRARY=$(readlink -f "$folder/$1") || continue
    [[ ! -e $LIBRARY || ! $LIBRARY =~ \.so\.[0-9]{3}\.[0-9.]+$ ]] || return 0
  done
  LIBRARY=''
}

# run_version - of NVIDIA's installer, where it has installed a driver.
run_version() {
  [[ -x $ROOT/usr/bin/nvidia-uninstall ]] || return 0
  library_version
}

# find_held - sets HELD_CARDS: of each of NVIDIA's cards that nouveau or its successor has, `ADDRESS DRIVER`; FREE_CARD: yes where neither these nor
# vfio-pci has one; BOUND_CARD: yes where vfio-pci has one.
find_held() {
  local device class vendor
  HELD_CARDS=() FREE_CARD='' BOUND_CARD=''
  for device in "$ROOT"/sys/bus/pci/devices/*; do
    class='' vendor=''
    [[ ! -r $device/class ]] || read -r class <"$device/class" || :
    [[ $class == 0x03* ]] || continue
    read -r vendor <"$device/vendor" || :
    [[ $vendor == 0x10de ]] || continue
    find_linked "$device/driver"
    case $LINKED in
      nouveau | nova*) HELD_CARDS+=("${device##*/} $LINKED") ;;
      vfio-pci) BOUND_CARD=yes ;;
      *) FREE_CARD=yes ;;
    esac
  done
}

# read_driver_note - NOTED_VERSION, NOTED_SOURCE, NOTED_FLAVOUR, NOTED_TARGET; empty where there is none.
read_driver_note() {
  NOTED_VERSION='' NOTED_SOURCE='' NOTED_FLAVOUR='' NOTED_TARGET=''
  [[ ! -f $STATE/nvidia-driver ]] || IFS=$'\t' read -r NOTED_VERSION NOTED_SOURCE NOTED_TARGET NOTED_FLAVOUR <"$STATE/nvidia-driver"
}

# update_phase - how far an update of the driver is (driver/trial.sh); nothing where there is none.
update_phase() { of_file "$STATE/update/phase"; }

# offered_json NAME... - JSON: for each package the versions that apt knows of, the newest first.
offered_json() {
  local name version origin _ separator=''
  declare -A versions=()
  if command -v apt-cache >/dev/null; then
    while read -r name _ version _ origin; do
      [[ $origin != *Packages || " ${versions[$name]:-} " == *" $version "* ]] || versions[$name]+=" $version"
    done < <(apt-cache madison "$@" 2>/dev/null)
  fi
  printf '{'
  for name in "$@"; do
    printf '%s' "$separator"
    json_string "$name"
    printf ':'
    # shellcheck disable=SC2086 # versions, separated by spaces
    json_list ${versions[$name]:-}
    separator=,
  done
  printf '}'
}

# is_wanted - is the wanted driver installed (TARGET, DRIVER, FLAVOUR and SOURCE as of nvidia_driver.sh), whoever did that? Sets VERSION.
# After read_driver_note.
is_wanted() {
  local kernel
  VERSION=$(library_version)
  is_version_wanted || return 1
  [[ $TARGET != lxc ]] || return 0
  find_kernels "$TARGET"
  for kernel in "${KERNELS[@]}"; do
    has_module "$kernel" || return 1
  done
}

# has_module KERNEL - of VERSION and FLAVOUR. After it MODULE_VERSION and MODULE_FLAVOUR are set.
has_module() {
  find_module "$1"
  [[ $MODULE_VERSION == "$VERSION" && $MODULE_FLAVOUR == "$FLAVOUR" ]]
}

# is_version_wanted - the same without the modules, of VERSION.
is_version_wanted() {
  fits "$VERSION" && [[ -x $ROOT/usr/bin/nvidia-smi && -z $(dpkg --audit 2>/dev/null) ]] || return 1
  # One that we installed from packages doesn't go on as an installer's, or the other way round, if that is what is wanted now.
  [[ $NOTED_SOURCE != packages || $SOURCE != run ]] && [[ $NOTED_SOURCE != run || $SOURCE != packages ]]
}

# has_libraries - those of LIBRARIES, of whatever version: a driver that was there may be for computing alone.
has_libraries() { [[ -z $(lacking_libraries) ]]; }

lacking_libraries() {
  local name
  for name in $LIBRARIES; do
    find_library "$name"
    [[ -n $LIBRARY ]] || printf '%s\n' "$name"
  done
}

# fits VERSION - is it the wanted one, or of the wanted branch?
fits() { [[ -n $1 ]] && [[ $1 == "$DRIVER" || ($DRIVER != *.* && $1 == "$DRIVER".*) ]]; }
