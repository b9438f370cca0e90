#!/usr/bin/env bash
# A container engine configured by nvidia-ctk, and its configuration given back.
# Needs: engines, packages
#
# Gives: configure, give_back_engine ENGINE -> CHANGED. Variables: those of container_toolkit.sh.
CONFIG_CHANGED=no

# configure - only what changes the meaning of the configuration leads to a restart.
configure() {
  local command file paths
  read -ra command <<<"$CONFIGURE"
  ((${#command[@]} > 0)) || return 0
  # Containers ask the engine itself for CDI's names, which docker 25 to 28.2 must be told to know.
  [[ -z $CDI ]] || command+=(--cdi.enabled)
  file=$LOGS/configure
  mapfile -t paths < <(config_files "$RUNTIME")
  is_pending "restart-$RUNTIME" && WAS_PENDING=yes || WAS_PENDING=no
  pending "restart-$RUNTIME"
  for_each begin_change "${paths[@]}"
  run_streamed "$INSTALL_SECONDS" "$file" "${command[@]}" || explain "$file" "$NAME: $RUNTIME configured by \`${command[*]}\`" \
    "without it no container gets a card" "correct $(tr '\n' ' ' < <(config_files "$RUNTIME"))as the lines above say, then run \`pulumi up\` again"
  for_each end_change "${paths[@]}"
  if [[ $CONFIG_CHANGED == yes ]]; then CHANGED=yes; fi
  [[ $CONFIG_CHANGED == yes || $WAS_PENDING == yes ]] || done_with "restart-$RUNTIME"
}

for_each() { # FUNCTION ITEM...
  local function=$1 item
  shift
  for item in "$@"; do "$function" "$item"; done
}

# give_back_engine ENGINE - of an engine that isn't, or is no longer, meant.
give_back_engine() {
  local path
  CONFIG_CHANGED=no
  for path in $(config_files "$1"); do
    [[ $(config_state "$path") == absent ]] || pending "restart-$1"
    give_back_config "$path"
  done
  [[ $CONFIG_CHANGED == no ]] || CHANGED=yes
  CONFIG_CHANGED=no
}
