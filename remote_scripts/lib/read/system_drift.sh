#!/usr/bin/env bash
# How far what was put on a system is still so.
# Needs: files, driver, packages/installed
#
# Gives: files_drift, packages_drift, driver_drift -> DRIFT. Takes `version` and `flavour` of read_system.sh.
DRIFT=()

# step_of LAYER - nvidia-driver -> driver
step_of() { printf '%s' "${1#nvidia-}"; }

files_drift() {
  local layer path state
  for layer in "$STATE"/files/{nvidia-*,cuda}; do
    [[ -d $layer ]] || continue
    layer=${layer##*/}
    while read -r state path; do
      [[ $state == ok ]] || DRIFT+=("$(step_of "$layer"): $path is $state")
    done < <(layer_states "$layer")
  done
}

packages_drift() {
  local file name now before _
  for file in "$STATE"/packages/{nvidia-*,cuda,toolkit,libraries}; do
    [[ -f $file ]] || continue
    while IFS=$'\t' read -r name now before _; do
      [[ ${PRESENT[$name]:--} != "$now" ]] || continue
      DRIFT+=("$(step_of "${file##*/}"): package $name is ${PRESENT[$name]:-gone}, it was $now")
    done <"$file"
  done
}

driver_drift() {
  local kernel found
  read_driver_note
  if [[ -z $NOTED_VERSION ]]; then
    return 0
  fi
  [[ ! -s $STATE/given-up ]] || DRIFT+=("driver: the update to $(<"$STATE/given-up") was given up, $NOTED_VERSION is back")
  [[ ! $(update_phase) =~ ^(trying|back)$ ]] || DRIFT+=("driver: an update was cut short")
  found=$(library_version)
  [[ $found == "$NOTED_VERSION" ]] || DRIFT+=("driver: its libraries are ${found:-gone}, they were $NOTED_VERSION")
  if is_container; then
    [[ -z $version || $version == "$NOTED_VERSION" ]] || DRIFT+=("driver: its libraries are ${found:-gone}, the host's driver is $version")
    return 0
  fi
  find_kernels "$NOTED_TARGET"
  for kernel in "${KERNELS[@]}"; do
    find_module "$kernel"
    found=$MODULE_VERSION
    [[ $found == "$NOTED_VERSION" ]] || DRIFT+=("driver: the kernel $kernel has ${found:-no module}${found:+ as module}, the driver is $NOTED_VERSION")
  done
  if [[ -z $version ]]; then
    DRIFT+=("boot: no module is loaded, the driver is $NOTED_VERSION")
  elif [[ $version != "$NOTED_VERSION" ]]; then
    DRIFT+=("boot: $version is loaded, the driver is $NOTED_VERSION")
  elif [[ -n $NOTED_FLAVOUR && $flavour != "$NOTED_FLAVOUR" ]]; then
    DRIFT+=("boot: the $flavour modules are loaded, the $NOTED_FLAVOUR ones are installed")
  fi
}
