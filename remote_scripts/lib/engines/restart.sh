#!/usr/bin/env bash
# A container engine: is it there, and does it run with what was configured? Restarted only for that.
# Needs: engines, packages, versions
#
# Gives: has_engine NAME, need_engine, check_engine; restart_k3s; restart_if_changed UNIT, restart_others [ENGINE] -> RESTARTED. Variables: those of
#   container_toolkit.sh.
RESTARTED=no
# Written by k3s at each of its starts, with the runtimes that it finds.
K3S_CONFIG=/var/lib/rancher/k3s/agent/etc/containerd/config.toml
# How long k3s may take until it has written that, in seconds.
K3S_SECONDS=120

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
    [[ $RUNTIME != k3s ]] || die "$NAME: k3s, for which nvidia.containerToolkit is set" "/usr/local/bin/k3s isn't there" \
      "the toolkit is for the containerd that k3s brings" "install k3s by its own installer, or take nvidia.containerToolkit out"
    [[ -n $INSTALL ]] || die "$NAME: $RUNTIME, for which nvidia.containerToolkit is set" "it isn't installed$hint" \
      "the toolkit gives cards to containers of an engine that is there; another one is installed only if the settings ask for it" \
      "set nvidia.docker: install, install $RUNTIME yourself, or take nvidia.containerToolkit out"
    install_packages toolkit yes "$INSTALL"
  fi
  [[ $RUNTIME == podman ]] || return 0
  # The first that reads specifications as the toolkit writes them (NVIDIA/cloud-native-docs, cdi-support.md).
  version=$(exec_within "$ASK_SECONDS" podman --version 2>&1 | grep -oE '[0-9]+(\.[0-9]+)+' | head -n 1) || :
  at_least 4.1.0 "${version:-0}" || die "$NAME: podman 4.1 or later" "${version:-no version}" \
    "podman gets cards by CDI, which it knows from there on" "update podman (Ubuntu from 24.04 on and Debian from 12 on have it), or use docker"
}

# restart_k3s - it looks for NVIDIA's runtime when it starts, and at no other time.
restart_k3s() {
  local unit='' name file=$LOGS/restart began
  [[ $RUNTIME == k3s ]] && ! k3s_knows_nvidia || return 0
  for name in k3s-agent k3s; do
    ! systemctl is-active -q "$name" </dev/null || unit=$name
  done
  [[ -n $unit ]] || die "$NAME: k3s at work" "neither k3s nor k3s-agent is active" "it finds NVIDIA's runtime when it starts" \
    "start it, and see \`journalctl -xeu k3s\` (k3s-agent); then run \`pulumi up\` again"
  log "restarting $unit, which looks for NVIDIA's runtime when it starts: its pods run on"
  run_streamed "$INSTALL_SECONDS" "$file" systemctl restart "$unit" || engine_down "$unit"
  began=$SECONDS
  until k3s_knows_nvidia || ((SECONDS - began > K3S_SECONDS)) || ! systemctl is-active -q "$unit" </dev/null; do
    sleep 1
  done
  RESTARTED=yes CHANGED=yes
}

k3s_knows_nvidia() { grep -q nvidia-container-runtime "$ROOT$K3S_CONFIG" 2>/dev/null; }

check_engine() {
  local known
  if [[ $RUNTIME == k3s ]] && ! k3s_knows_nvidia; then
    die "$NAME: k3s's containerd with the runtime nvidia" "$K3S_CONFIG has none after a restart of k3s" \
      "a pod with the runtime class nvidia doesn't start" \
      "a config.toml.tmpl of your own beside it must have \`{{ template \"base\" . }}\`, by which k3s fills in what it finds; see \`journalctl -xeu k3s\` (k3s-agent), then run \`pulumi up\` again"
  fi
  [[ $RUNTIME == docker ]] || return 0
  known=$(exec_within "$ASK_SECONDS" docker info --format '{{json .Runtimes}}' 2>&1 </dev/null) || :
  [[ $known == *'"nvidia"'* ]] || die "$NAME: docker with the runtime nvidia" "\`docker info\` knows: $(tail -n 2 <<<"$known")" \
    "no container gets a card" "is dockerd started with another --config-file, or docker a remote one (DOCKER_HOST)? then \`pulumi up\` again"
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
      log "note: restarting docker, and its containers with it: ${running[*]}"
    fi
  else
    log "restarting $unit: its containers run on"
  fi
  run_streamed "$INSTALL_SECONDS" "$file" systemctl restart "$unit" || engine_down "$unit"
  systemctl is-active -q "$unit" </dev/null || engine_down "$unit"
  for name in "${running[@]}"; do
    # Those with a restart policy are up again already.
    run_logged docker start "$name" || log "note: container $name isn't there any more (--rm), or doesn't start"
  done
  RESTARTED=yes
  done_with "restart-$unit"
}

# engine_down UNIT - what was there before is put back, and the engine started with that.
engine_down() {
  local said next="read \`journalctl -xeu $1\`, correct the cause, and run \`pulumi up\` again"
  said=$(journalctl -q --no-pager -n 8 -o cat -u "$1" 2>/dev/null </dev/null) || :
  [[ $TARGET != lxc ]] || next="a container needs features: nesting=1,keyctl=1 for $1 (\`pct set ID --features nesting=1,keyctl=1\`, with those that \`pct config ID\` shows already: others go); else $next"
  undo
  run_logged systemctl restart "$1" || :
  die "$NAME: $1, started with NVIDIA's runtime in its configuration" "$(tail -n 4 "$LOGS/restart")${said:+$'\n'$said}" \
    "it isn't running; its configuration was put back as it was" "$next"
}
