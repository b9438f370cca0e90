#!/usr/bin/env bash
# The driver's modules: built for every kernel that must have them, in no other driver's way, loaded.
# Needs: driver, packages
#
# Gives: build_modules, build_for KERNEL -> CHANGED; load -> `reboot`, `why`; held_by_others -> HOLDER; blacklist_nouveau, renew_initramfs. Variables:
#   VERSION; TARGET and FLAVOUR of nvidia_driver.sh, LAYER.
BLACKLIST=/etc/modprobe.d/homelab-nvidia.conf

# build_modules - for every kernel that must have them.
build_modules() {
  local kernel
  find_kernels "$TARGET"
  for kernel in "${KERNELS[@]}"; do build_for "$kernel"; done
}

# build_for KERNEL - and looked at: what DKMS says, and whether the file is there.
build_for() {
  local status
  ! has_module "$1" || return 0
  log "building the modules of $VERSION for $1"
  run_streamed "$INSTALL_SECONDS" "$LOGS/dkms" dkms install -m "$(dkms_name)" -v "$VERSION" -k "$1" ||
    explain "$LOGS/dkms" "the modules of $VERSION, built for $1" "that kernel would come up without the driver"
  has_module "$1" || {
    status=$(exec_within "$ASK_SECONDS" dkms status 2>/dev/null | grep -i nvidia)
    die "the modules of $VERSION ($FLAVOUR), installed for $1" \
      "modinfo: $MODULE_VERSION $MODULE_FLAVOUR; dkms status: ${status:-nothing}" \
      "that kernel would come up without the driver" "build it by hand, \`dkms install nvidia/$VERSION -k $1\`, and read what it says"
  }
  CHANGED=yes
}

# dkms_name - what the packages call it: nvidia, nvidia-open, nvidia-current.
dkms_name() {
  local name
  name=$(exec_within "$ASK_SECONDS" dkms status 2>/dev/null | sed -nE "s#^(nvidia[a-z-]*)(/|, )${VERSION//./\\.}[:,].*#\\1#p" | head -n 1)
  printf '%s' "${name:-nvidia}"
}

# held_by_others - does another driver have one of NVIDIA's cards, or vfio-pci all of them, of which one comes back with the next boot? HOLDER names it.
held_by_others() {
  find_held
  HOLDER=${HELD_CARDS[0]-} HOLDER=${HOLDER#* }
  [[ -n $HOLDER$FREE_CARD || -z $BOUND_CARD ]] || HOLDER=vfio-pci
  [[ -n $HOLDER ]]
}

# load - at once where that can be done; sets `reboot` and `why`.
load() {
  find_loaded
  if [[ $LOADED == "$VERSION" && $LOADED_FLAVOUR == "$FLAVOUR" ]]; then
    reboot=no why="$VERSION is loaded"
  elif [[ -n $LOADED ]]; then
    reboot=yes why="$LOADED ($LOADED_FLAVOUR) is loaded, $VERSION ($FLAVOUR) is installed"
  elif held_by_others; then
    reboot=yes why="$HOLDER has a card, and gives it up at a boot"
  else
    load_module
    reboot=no why="$VERSION was loaded: nothing else had the card"
  fi
  if [[ $reboot == no ]]; then
    modprobe nvidia-uvm 2>/dev/null || log "note: nvidia-uvm could not be loaded"
  fi
}

load_module() {
  local file=$LOGS/load lines
  lines=$(exec_within "$ASK_SECONDS" dmesg 2>/dev/null | wc -l)
  run_streamed 120 "$file" modprobe nvidia && return 0
  # What the driver said of the card is in the kernel's log.
  within "$ASK_SECONDS" dmesg 2>/dev/null | tail -n "+$((lines + 1))" | grep -E 'NVRM|nvidia|signature' >>"$file" || :
  explain "$file" "the module nvidia of $VERSION, loaded" "nothing can use the card without it" \
    "look at \`dmesg | grep NVRM\`; is there a card of NVIDIA's, free of other drivers (\`lspci -nnk\`)?"
}

# blacklist_nouveau - the driver's packages bring that of their own.
blacklist_nouveau() {
  local changed=$CHANGED
  CHANGED=no
  FOLLOWED_BY=nvidia-initramfs
  put_file "$LAYER" "$BLACKLIST" 0644 "# NVIDIA's driver has the cards.
blacklist nouveau
blacklist nova_core
blacklist nova_drm
options nouveau modeset=0"
  [[ $changed == no ]] || CHANGED=yes
  finish
  FOLLOWED_BY=''
  renew_initramfs
}

# renew_initramfs - nouveau may be loaded from it, before /etc is seen.
renew_initramfs() {
  local kernels=()
  is_pending nvidia-initramfs || return 0
  [[ $TARGET != host ]] || kernels=(-k all)
  if command -v update-initramfs >/dev/null; then
    log "making the initramfs anew, with nouveau blacklisted"
    DOING=update-initramfs run_streamed "$INSTALL_SECONDS" "$LOGS/initramfs" update-initramfs -u "${kernels[@]}" ||
      explain "$LOGS/initramfs" "an initramfs with nouveau blacklisted" "nouveau would take the card at the next boot"
  fi
  done_with nvidia-initramfs
}
