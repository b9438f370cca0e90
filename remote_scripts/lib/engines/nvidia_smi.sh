#!/usr/bin/env bash
# nvidia-smi in a container of an engine, which leaves nothing behind.
# Needs: proxy
#
# Gives: in_container. Variables: ENGINE, IMAGE, CDI, CONTAINER, FOLDER; takes `limited` of nvidia_verification.sh.

in_container() {
  local options=()
  case $ENGINE in
    docker | podman) choose_options && in_engine ;;
    containerd) in_containerd ;;
  esac
}

# choose_options - how the engine is told to give the cards. docker takes CDI names from 25 on, and all by itself from 28.3 on; before,
# the toolkit's runtime does.
choose_options() {
  local version
  if [[ $ENGINE == podman ]]; then
    options=(--device nvidia.com/gpu=all --security-opt label=disable)
    return
  fi
  version=$(limited docker --version) || return
  version=$(grep -oE '[0-9]+' <<<"$version" | head -n 1)
  if [[ $CDI != yes ]]; then
    options=(--runtime=nvidia --gpus all)
  elif ((version >= 25)); then
    options=(--device nvidia.com/gpu=all)
  else
    options=(--runtime=nvidia -e NVIDIA_VISIBLE_DEVICES=all)
  fi
}

in_engine() {
  local status=0 there=yes
  limited "$ENGINE" image inspect "$IMAGE" >/dev/null 2>&1 || there=no
  limited "$ENGINE" rm -f "$CONTAINER" >/dev/null 2>&1 || : # of a run that was killed
  with_proxy limited "$ENGINE" run --rm --name "$CONTAINER" "${options[@]}" "$IMAGE" nvidia-smi -L || status=$?
  ((status < 124)) || "$ENGINE" rm -f "$CONTAINER" >/dev/null 2>&1 || :
  [[ $there == yes ]] || "$ENGINE" rmi "$IMAGE" >/dev/null 2>&1 || :
  return "$status"
}

# containerd's own client, in a namespace of our own; Kubernetes reaches the same runtime by containerd's configuration.
in_containerd() {
  local status=0
  local ctr=(ctr -n "$CONTAINER")
  with_proxy limited "${ctr[@]}" images pull "$IMAGE" >"$FOLDER/pull" 2>&1 || {
    status=$?
    cat "$FOLDER/pull"
    return "$status"
  }
  limited "${ctr[@]}" run --rm --runc-binary=/usr/bin/nvidia-container-runtime --env NVIDIA_VISIBLE_DEVICES=all "$IMAGE" "$CONTAINER" \
    nvidia-smi -L || status=$?
  "${ctr[@]}" images rm "$IMAGE" >/dev/null 2>&1 || :
  ctr namespaces rm "$CONTAINER" >/dev/null 2>&1 || :
  return "$status"
}
