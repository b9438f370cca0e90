#!/usr/bin/env bash
# Before a driver is installed: whether its packages can be had, and what they need.
# Needs: packages, driver/packages
#
# Gives: install_prerequisites; choose_source -> source. Variables: those of nvidia_driver.sh (PREREQUISITES, SOURCE, PACKAGES, TARGET), LAYER.

install_prerequisites() {
  local package names wanted=()
  read -ra names <<<"$PREREQUISITES"
  read_installed
  for package in "${names[@]}"; do
    ! can_be_had "$package" || wanted+=("$package")
  done
  ((${#wanted[@]} == 0)) || install_packages "$LAYER" no "${wanted[@]}"
}

# can_be_had PACKAGE - no for headers of a kernel that no repository has, and that somebody has put there in another way. Without any it
# ends the run.
can_be_had() {
  local kernel
  [[ $1 =~ ^(linux|proxmox)-headers-([0-9].*)$ ]] || return 0
  kernel=${BASH_REMATCH[2]}
  if is_whole "$1" || [[ -n $(apt-cache madison "$1") ]]; then
    return 0
  fi
  [[ ! -e $ROOT/usr/lib/modules/$kernel/build && ! -L $ROOT/usr/lib/modules/$kernel/build ]] || {
    log "note: no repository has $1; the headers in /lib/modules/$kernel/build are used"
    return 1
  }
  die "headers of the kernel $kernel, the package $1" "no repository has it" "DKMS builds the driver's modules for that kernel with them" \
    "update that kernel to one whose headers are there (\`apt full-upgrade\`, a reboot), and remove the old one; or install its headers by hand"
}

# choose_source - sets `source`.
choose_source() {
  local package names
  source=$SOURCE
  [[ $SOURCE == either ]] || return 0
  source=packages
  read -ra names <<<"$PACKAGES"
  for package in "${names[@]}"; do
    is_offered "$package" || {
      source=run
      log "note: $package isn't offered: NVIDIA's installer is used"
      return 0
    }
  done
  if [[ $TARGET == lxc ]] && brings_modules "${names[@]}"; then
    source=run
    log "note: the packages would bring kernel modules, which have no place in a container: NVIDIA's installer is used"
  fi
}
