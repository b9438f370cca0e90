#!/usr/bin/env bash
# nvidia-smi in a container of an engine, which leaves nothing behind, and the driver's libraries loaded there.
# Needs: proxy
#
# Gives: in_container. Variables: ENGINE, IMAGE, CDI, CONTAINER, FOLDER, LOAD; takes `limited` and `found_libraries` of
#   nvidia_verification.sh.

in_container() {
  local options=() found=() command=(nvidia-smi -L)
  mapfile -t found < <(found_libraries)
  # shellcheck disable=SC2016 # for the shell inside
  ((${#found[@]} == 0)) || command=(sh -c 'nvidia-smi -L && exec perl -e "$@"' sh "$LOAD" "${found[@]}")
  case $ENGINE in
    docker | podman) choose_options && in_engine ;;
    containerd) in_containerd ctr ;;
    k3s) in_containerd "$ROOT/usr/local/bin/k3s" ctr ;;
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

# capabilities - what the toolkit is asked for: without a word it gives `utility,compute` alone. In the words of the libraries that are there.
capabilities() {
  printf 'compute,utility'
  [[ " ${found[*]} " != *" libnvidia-encode."* ]] || printf ',video'
  [[ " ${found[*]} " != *" libEGL_nvidia."* ]] || printf ',graphics'
}

in_engine() {
  local status=0 there=yes
  limited "$ENGINE" image inspect "$IMAGE" >/dev/null 2>&1 || there=no
  limited "$ENGINE" rm -f "$CONTAINER" >/dev/null 2>&1 || : # of a run that was killed
  with_proxy limited "$ENGINE" run --rm --name "$CONTAINER" -e "NVIDIA_DRIVER_CAPABILITIES=$(capabilities)" "${options[@]}" "$IMAGE" \
    "${command[@]}" || status=$?
  ((status < 124)) || "$ENGINE" rm -f "$CONTAINER" >/dev/null 2>&1 || :
  [[ $there == yes ]] || "$ENGINE" rmi "$IMAGE" >/dev/null 2>&1 || :
  return "$status"
}

# in_containerd CLIENT... - containerd's own client, in a namespace of our own; Kubernetes reaches the same runtime by containerd's
# configuration. k3s has a containerd of its own, with the client in its program.
in_containerd() {
  local status=0
  local ctr=("$@" -n "$CONTAINER")
  with_proxy limited "${ctr[@]}" images pull "$IMAGE" >"$FOLDER/pull" 2>&1 || {
    status=$?
    cat "$FOLDER/pull"
    return "$status"
  }
  limited "${ctr[@]}" run --rm --runc-binary=/usr/bin/nvidia-container-runtime --env NVIDIA_VISIBLE_DEVICES=all \
    --env "NVIDIA_DRIVER_CAPABILITIES=$(capabilities)" "$IMAGE" "$CONTAINER" "${command[@]}" || status=$?
  "${ctr[@]}" images rm "$IMAGE" >/dev/null 2>&1 || :
  limited "$@" namespaces rm "$CONTAINER" >/dev/null 2>&1 || :
  return "$status"
}
