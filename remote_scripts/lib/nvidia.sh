#!/usr/bin/env bash
# NVIDIA's driver on a host.
# Needs: lines
#
# Gives: find_loaded -> LOADED, LOADED_FLAVOUR, nvidia_version.
NVIDIA_PROC=/proc/driver/nvidia

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
