#!/usr/bin/env bash
# NVIDIA's container toolkit, for one container engine that is there.
#
# Arguments: TARGET (vm | host | lxc), RUNTIME (docker | containerd | podman), PACKAGES (NAME or NAME=PATTERN, separated by spaces), INSTALL
# (the engine's package if it may be installed, else nothing), CONFIGURE (command, words separated by spaces), RESTART (unit, or nothing),
# NO_CGROUPS (yes | no: the old hook leaves control groups alone), CDI (path of a CDI specification, or nothing), DRIVER (version that the
# specification is made for), those of packages.sh, GENERATION (no part in what happens).
# Changes: the packages, the engine's configuration (restarted if that changed), the specification, the toolkit's no-cgroups.
# Undone by `revert`: the packages and the specification; a configuration is given back byte for byte, or, where somebody has changed it
# since, without what is ours.
# Verbs: apply, revert.
# Answer: {"runtime","version","cdi","changed","restarted"}; of `revert` {"changed","kept"}.
CONFIG_CHANGED=no
RESTARTED=no

apply() {
  local packages other
  read -ra packages <<<"$PACKAGES"
  take_lock
  need_engine
  install_packages toolkit no "${packages[@]}"
  for other in docker containerd; do
    [[ $other == "$RUNTIME" ]] || give_back_engine "$other"
  done
  restart_others "$RUNTIME"
  allow_no_cgroups
  configure
  make_specification
  restart_if_changed "$RESTART"
  check_engine
  step_done toolkit
  finish
  printf '{"runtime":"%s","version":%s,"cdi":%s,"changed":"%s","restarted":"%s"}\n' "$RUNTIME" \
    "$(json_string "$(package_version nvidia-container-toolkit)")" "$(json_string "$CDI")" "$CHANGED" "$RESTARTED"
}

revert() {
  local engine path
  take_lock
  for path in $(layer_files toolkit); do
    case $path in
      *.toml | */daemon.json) ;;
      *) drop_file toolkit "$path" ;;
    esac
  done
  remove_file /var/lib/homelab/toolkit-cdi
  give_back_config "$(config_files toolkit)"
  [[ $CONFIG_CHANGED == no ]] || CHANGED=yes
  CONFIG_CHANGED=no
  for engine in docker containerd; do
    give_back_engine "$engine"
  done
  remove_packages toolkit
  restart_others
  step_undone toolkit
  finish
  printf '{"changed":"%s","kept":%s}\n' "$CHANGED" "$(json_list "${KEPT[@]}")"
}

# -- the engine ------------------------------------------------------------------------------------------------
# has_engine NAME - also where its packages are Docker's own. A client alone (docker-ce-cli) is no engine.
has_engine() {
  local program=$1 folder
  [[ $1 != docker ]] || program=dockerd
  for folder in /usr/bin /usr/sbin /usr/local/bin /usr/local/sbin; do
    [[ ! -x $ROOT$folder/$program ]] || return 0
  done
  return 1
}

need_engine() {
  local version hint=''
  if ! has_engine "$RUNTIME"; then
    [[ ! -e $ROOT/snap/bin/$RUNTIME ]] || hint=" (there is a snap of it, which can't use NVIDIA's toolkit)"
    [[ -n $INSTALL ]] || die "$NAME: $RUNTIME, for which nvidia.containerToolkit is set" "it isn't installed$hint" \
      "the toolkit gives cards to containers of an engine that is there; another one is not put on a system unasked" \
      "set nvidia.docker: install, install $RUNTIME yourself, or take nvidia.containerToolkit out"
    install_packages toolkit yes "$INSTALL"
  fi
  [[ $RUNTIME == podman ]] || return 0
  # The first that reads specifications as the toolkit writes them (NVIDIA/cloud-native-docs, cdi-support.md).
  version=$(within "$ASK_SECONDS" podman --version 2>&1 | grep -oE '[0-9]+(\.[0-9]+)+' | head -n 1) || :
  [[ $(printf '4.1.0\n%s\n' "${version:-0}" | sort -V | head -n 1) == 4.1.0 ]] || die "$NAME: podman 4.1 or later" "${version:-no version}" \
    "podman gets cards by CDI, which it knows from there on" "update podman (Ubuntu from 24.04 on and Debian from 12 on have it), or use docker"
}

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
  quietly "$file" "${command[@]}" || explain "$file" "$NAME: $RUNTIME configured by \`${command[*]}\`" \
    "without it no container gets a card" "correct $(tr '\n' ' ' < <(config_files "$RUNTIME"))as the lines above say, then run \`pulumi up\` again"
  for_each end_change "${paths[@]}"
  if [[ $CONFIG_CHANGED == yes ]]; then CHANGED=yes; fi
  [[ $CONFIG_CHANGED == yes || $WAS_PENDING == yes ]] || done_with "restart-$RUNTIME"
}

# quietly LOG COMMAND... - nvidia-ctk says that it wrote a file also where nothing has changed.
quietly() {
  local file=$1
  shift
  holding_lock "$file" timeout -k 5 "$INSTALL_SECONDS" env --default-signal=TERM,HUP,PIPE "$@"
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

# restart_others - engines whose configuration was given back, where they are still there.
restart_others() {
  local engine
  for engine in docker containerd; do
    [[ ${1:-} != "$engine" ]] || continue
    ! has_engine "$engine" || restart_if_changed "$engine"
    done_with "restart-$engine"
  done
}

# restart_if_changed UNIT - containers of docker stop with it, unless it has live-restore; those that ran are started again.
restart_if_changed() {
  local unit=$1 running=() name file=$LOGS/restart
  [[ -n $unit ]] && is_pending "restart-$unit" || return 0
  if [[ $unit == docker ]]; then
    mapfile -t running < <(within "$ASK_SECONDS" docker ps --format '{{.Names}}' 2>/dev/null </dev/null || :)
    if ((${#running[@]} == 0)); then
      log "restarting docker: no container runs"
    elif [[ $(within "$ASK_SECONDS" docker info --format '{{.LiveRestoreEnabled}}' 2>/dev/null </dev/null || :) == true ]]; then
      log "restarting docker: its containers run on (live-restore): ${running[*]}"
      running=()
    else
      log "restarting docker, and its containers with it: ${running[*]}"
    fi
  else
    log "restarting $unit: its containers run on"
  fi
  run_streamed "$INSTALL_SECONDS" "$file" systemctl restart "$unit" || engine_down "$unit"
  systemctl is-active -q "$unit" </dev/null || engine_down "$unit"
  for name in "${running[@]}"; do
    # Those with a restart policy are up again already.
    docker start "$name" >/dev/null 2>&1 </dev/null || log "container $name isn't there any more (--rm), or doesn't start"
  done
  RESTARTED=yes
  done_with "restart-$unit"
}

# engine_down UNIT - what was there before is put back, and the engine started with that.
engine_down() {
  local said next="read \`journalctl -xeu $1\`, mend it, and run \`pulumi up\` again"
  said=$(journalctl -q --no-pager -n 8 -o cat -u "$1" 2>/dev/null </dev/null) || :
  [[ $TARGET != lxc ]] || next="a container needs features: nesting=1,keyctl=1 for $1 (\`pct set ID --features nesting=1,keyctl=1\`, with those that \`pct config ID\` shows already: others go); else $next"
  undo
  systemctl restart "$1" >/dev/null 2>&1 </dev/null || :
  die "$NAME: $1, started with NVIDIA's runtime in its configuration" "$(tail -n 4 "$LOGS/restart")${said:+$'\n'$said}" \
    "it isn't running; its configuration was put back as it was" "$next"
}

check_engine() {
  local known
  [[ $RUNTIME == docker ]] || return 0
  known=$(within "$ASK_SECONDS" docker info --format '{{json .Runtimes}}' 2>&1 </dev/null) || :
  [[ $known == *'"nvidia"'* ]] || die "$NAME: docker with the runtime nvidia" "\`docker info\` knows: $(tail -n 2 <<<"$known")" \
    "no container gets a card" "is dockerd started with another --config-file, or docker a remote one (DOCKER_HOST)? then \`pulumi up\` again"
}

# -- the toolkit's own configuration ---------------------------------------------------------------------------
# An unprivileged LXC container may not write device rules of control groups, and needs none: the host has given it the nodes.
allow_no_cgroups() {
  local path file=$LOGS/configure before=$CONFIG_CHANGED
  path=$(config_files toolkit)
  if [[ $NO_CGROUPS != yes ]]; then
    give_back_config "$path"
  elif ! awk '/^\[/ { table = $0 } table == "[nvidia-container-cli]" && /^no-cgroups *= *true/ { found = 1 } END { exit !found }' "$ROOT$path" 2>/dev/null; then
    begin_change "$path"
    quietly "$file" nvidia-ctk config --set nvidia-container-cli.no-cgroups=true --in-place ||
      explain "$file" "$NAME: no-cgroups in $path" "in an unprivileged LXC container the toolkit's hook fails without it"
    end_change "$path"
  fi
  # It is read at each start of a container.
  if [[ $CONFIG_CHANGED == yes ]]; then CHANGED=yes; fi
  CONFIG_CHANGED=$before
}

# -- CDI -------------------------------------------------------------------------------------------------------
# make_specification - it names the driver's libraries by their version, and the cards' nodes.
make_specification() {
  local made_for path file=$LOGS/cdi
  for path in $(layer_files toolkit); do
    [[ $path != */cdi/* || $path == "$CDI" ]] || drop_file toolkit "$path"
  done
  [[ -n $CDI ]] || { remove_file /var/lib/homelab/toolkit-cdi && return; }
  made_for="$DRIVER $(find "$ROOT/dev" -maxdepth 1 -name 'nvidia[0-9]*' -printf '%f ' 2>/dev/null | tr ' ' '\n' | sort | tr '\n' ' ')"
  if [[ -e $ROOT$(record_file "$CDI") ]]; then
    [[ $(file_state toolkit "$CDI") != ok || $(cat "$STATE/toolkit-cdi" 2>/dev/null) != "$made_for" ]] || return 0
  elif [[ -e $ROOT$CDI ]] && grep -qE "\.so\.${DRIVER//./\\.}\$" "$ROOT$CDI"; then
    log "$CDI is there, for driver $DRIVER: left as it is"
    return
  fi
  run_streamed "$INSTALL_SECONDS" "$file" nvidia-ctk cdi generate "--output=$LOGS/cdi.yaml" ||
    explain "$file" "$NAME: a CDI specification of its cards" "by it $RUNTIME gives cards to containers" \
      "\`nvidia-smi\` there must work first; then run \`pulumi up\` again"
  grep -qE '^ *-? *name: "?all"?$' "$LOGS/cdi.yaml" || die "$NAME: a CDI specification of its cards" "nvidia-ctk found none" \
    "by it $RUNTIME gives cards to containers" "look at \`nvidia-smi -L\` there, and at its nodes in /dev, then run \`pulumi up\` again"
  put_file toolkit "$CDI" 0644 "$(<"$LOGS/cdi.yaml")"
  printf '%s\n' "$made_for" | write_atomically /var/lib/homelab/toolkit-cdi 0600
}

"$1" </dev/null
exit
