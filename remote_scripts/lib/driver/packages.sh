#!/usr/bin/env bash
# NVIDIA's driver from packages.
# Needs: driver, driver/modules, packages
#
# Gives: install_from_packages; stay_at_version -> PACKAGES, only_adds; is_offered NAME=PATTERN, brings_modules NAME...;
#   remove_driver_packages, drop_unwanted. Variables: those of nvidia_driver.sh; takes its remove_run.
# The driver's own packages: what may be replaced by another version, flavour or source of it. Not the container toolkit, not CUDA.
FAMILY='^(nvidia-(driver|dkms|kernel|open|headless|utils|compute|firmware|smi|modprobe|persistenced|settings|alternative|legacy|installer|support|vdpau|egl|opencl|vulkan|xconfig|prime|fabricmanager|imex|suspend|no-dkms)|libnvidia-([^c]|c[^o]|co[^n])|libcuda1|libcudadebugger1|libnvcuvid1|libnvoptix1|libgl1-nvidia-|libegl-nvidia|cuda-drivers|firmware-nvidia-gsp|xserver-xorg-video-nvidia|linux-(modules|objects|signatures)-nvidia-)'

install_from_packages() {
  local names
  read -ra names <<<"$PACKAGES"
  remove_run
  # The packages renew the newest kernel's at most.
  if [[ $TARGET == host ]] || held_by_others; then
    pending nvidia-initramfs
  fi
  install_packages "$LAYER" "$RECOMMENDS" "${names[@]}"
  remove_old "$(library_version)"
}

# stay_at_version - PACKAGES are of the very version that is there, where that fits and all of them can be had so: the repositories may have a
# newer one of its branch by now, and who asks for libraries asks for no update.
stay_at_version() {
  local package names version='' found=()
  fits "$(library_version)" || return 0
  read_installed
  read -ra names <<<"$PACKAGES"
  for package in "${names[@]}"; do version=${version:-${WHOLE[${package%%=*}]:-}}; done
  [[ -n $version ]] || return 0
  for package in "${names[@]}"; do
    found+=("${package%%=*}=$version")
    is_whole "${found[-1]}" || is_offered "${found[-1]}" || return 0
  done
  PACKAGES=${found[*]}
}

# only_adds - after stay_at_version: do PACKAGES come beside what is there, and replace nothing of it?
only_adds() {
  local package names
  [[ $SOURCE != run && -z $(run_version) ]] || return 1
  read -ra names <<<"$PACKAGES"
  for package in "${names[@]}"; do
    is_whole "$package" || { [[ -z ${PRESENT[${package%%=*}]:-} ]] && is_offered "$package"; } || return 1
  done
}

is_offered() { # NAME=PATTERN
  local version offered=no
  while read -r _ _ version _; do
    # shellcheck disable=SC2053 # a pattern, as apt takes it
    [[ $version != ${1#*=} ]] || offered=yes
  done < <(apt-cache madison "${1%%=*}")
  [[ $offered == yes ]]
}

# brings_modules NAME[=PATTERN]... - would apt install something of the kernel's with them?
brings_modules() {
  simulated "$LOGS/simulation.log" install --no-install-recommends --allow-downgrades "$@" || return 1
  announced "$LOGS/simulation.log" | awk -F'\t' '$3 != "-" && $1 ~ /dkms|^linux-(image|headers|modules|objects)|^nvidia-kernel-(source|open|support)/ { found = 1 } END { exit !found }'
}

# remove_old VERSION - packages of the driver that we added for another version, and that nothing needs any more; and what was left of those
# that made way.
remove_old() {
  local name old=() file=$LOGS/apt
  read_installed
  read_record "$LAYER"
  for name in "${!NOW[@]}"; do
    [[ ${BEFORE[$name]} == - && $name =~ $FAMILY ]] || continue
    if [[ -n ${LEFT[$name]:-} || (${PRESENT[$name]:-} =~ [0-9]{3}\.[0-9]+ && ${PRESENT[$name]} != *"$1"*) ]]; then
      old+=("$name")
    fi
  done
  leave_what_others_need "$file" "${old[@]}"
  ((${#GONE[@]} > 0)) || return 0
  log "removing what was of another version: ${GONE[*]}"
  apt_get "$file" purge "${GONE[@]}" || explain "$file" "to remove ${GONE[*]}" "they belong to a driver that was replaced"
  read_installed
  settle_record "$LAYER"
}

# drop_unwanted - packages of what the driver was for, and isn't any more, where we added them.
drop_unwanted() {
  local name old=()
  [[ -n $UNWANTED ]] || return 0
  read_installed
  read_record "$LAYER"
  for name in $UNWANTED; do
    [[ -z ${PRESENT[$name]:-} || -z ${NOW[$name]:-} || ${BEFORE[$name]} != - ]] || old+=("$name")
  done
  drop_packages "$LAYER" "what the driver is no longer for" "nvidia.capabilities leaves them out" "${old[@]}"
}

# remove_driver_packages - before NVIDIA's installer, which overwrites their files. What wasn't ours comes back with `revert`.
remove_driver_packages() {
  local name ours=() theirs=() file=$LOGS/apt
  read_installed
  for name in "${!PRESENT[@]}"; do
    [[ $name =~ $FAMILY ]] || continue
    if is_ours "$name"; then ours+=("$name"); else theirs+=("$name"); fi
  done
  ((${#ours[@]} + ${#theirs[@]} > 0)) || return 0
  simulated "$file" remove "${ours[@]}" "${theirs[@]}" || explain "$file" "to remove ${ours[*]} ${theirs[*]}" "NVIDIA's installer takes their place"
  require_others_kept "$file" "to replace the driver's packages by NVIDIA's installer"
  record_change "$LAYER" "$file"
  log "removing the driver's packages: ${ours[*]} ${theirs[*]}"
  # Somebody's configuration files stay; ours go.
  ((${#theirs[@]} == 0)) || apt_get "$file" remove "${theirs[@]}" || explain "$file" "to remove ${theirs[*]}" "NVIDIA's installer takes their place"
  ((${#ours[@]} == 0)) || apt_get "$file" purge "${ours[@]}" || explain "$file" "to remove ${ours[*]}" "NVIDIA's installer takes their place"
  CHANGED=yes
  read_installed
  settle_record "$LAYER"
}
