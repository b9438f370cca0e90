#!/usr/bin/env bash
# NVIDIA's container toolkit, for one container engine that is there.
# Needs: packages, engines, engines/restart, engines/configure
#
# Arguments: TARGET (vm | host | lxc), RUNTIME (docker | containerd | podman | k3s), PACKAGES (NAME or NAME=PATTERN, separated by spaces), INSTALL
# (the engine's package if it may be installed, else nothing), CONFIGURE (command, words separated by spaces), RESTART (unit, or nothing),
# CDI (path of a CDI specification, or nothing), CDI_OPTIONS (of
# nvidia-ctk, so that an older podman reads it, separated by spaces), DRIVER (version that the specification is made for), those of packages.sh,
# CAPABILITIES and GENERATION (no part in what happens).
# Changes: the packages, the engine's configuration (restarted if that changed), the specification.
# Undone by `revert`: the packages and the specification; a configuration is given back byte for byte. Where somebody has changed it since,
# docker's loses our runtime, and containerd's own file stays as it is: our drop-in goes.
# Verbs: apply, revert.
# Answer: {"runtime","version","cdi","changed","restarted"}; of `revert` {"changed","kept"}.

DOING="container toolkit"
REFRESH=nvidia-cdi-refresh.service
SERVICES_CDI=/run/cdi/nvidia.yaml

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
  configure
  make_specification
  restart_if_changed "$RESTART"
  restart_k3s
  check_engine
  step_done toolkit
  finish
  printf '{"runtime":"%s","version":%s,"cdi":%s,"changed":"%s","restarted":"%s"}\n' "$RUNTIME" \
    "$(json_string "$(package_version nvidia-container-toolkit)")" "$(json_string "$CDI")" "$CHANGED" "$RESTARTED"
}

revert() {
  local engine path FILES
  take_lock
  ! is_anothers_step toolkit || { leave_untouched && return; }
  find_layer_files toolkit
  for path in "${FILES[@]}"; do
    case $path in
      *.toml | */daemon.json) ;;
      *) drop_file toolkit "$path" ;;
    esac
  done
  remove_file /var/lib/homelab/toolkit-cdi
  for engine in docker containerd; do
    give_back_engine "$engine"
  done
  remove_packages toolkit
  # What its service has made means nothing without it.
  [[ -e $ROOT/usr/bin/nvidia-ctk ]] || rm -f "$ROOT$SERVICES_CDI"
  restart_others
  step_undone toolkit
  finish
  printf '{"changed":"%s","kept":%s}\n' "$CHANGED" "$(json_list "${KEPT[@]}")"
}

# -- CDI -------------------------------------------------------------------------------------------------------
# make_specification - it names the driver's libraries by their version, and the cards' nodes. One, and fresh: where the toolkit has a service for
# that (from 1.18 on, NVIDIA/nvidia-container-toolkit, deployments/systemd), its file in /run is it, which engines take before ours in /etc. The
# service runs at a boot and when modules are built; libraries that are added it doesn't see. In a container it does nothing.
make_specification() {
  local made_for path keep=$CDI file=$LOGS/cdi options FILES
  read -ra options <<<"${CDI_OPTIONS:-}"
  # Also by which libraries there are: those of video may have come later than the driver.
  made_for="$DRIVER $(find "$ROOT"/usr/lib/x86_64-linux-gnu -name "*.so.$DRIVER" -printf '%f\n' 2>/dev/null | sort | cksum) $(find "$ROOT/dev" -maxdepth 1 -name 'nvidia[0-9]*' -printf '%f ' 2>/dev/null | tr ' ' '\n' | sort | tr '\n' ' ')${options[*]:+ ${options[*]}}"
  # The service knows of no options: what it writes such a podman leaves out, and takes ours.
  if ((${#options[@]} == 0)) && has_refresh_service && refresh; then keep=''; fi
  find_layer_files toolkit
  for path in "${FILES[@]}"; do
    [[ $path != */cdi/* || $path == "$keep" ]] || drop_file toolkit "$path"
  done
  if [[ -z $keep ]]; then
    if has_fresh_specification; then CDI=$SERVICES_CDI; else remove_file /var/lib/homelab/toolkit-cdi; fi
    return 0
  fi
  if [[ -e $ROOT$(record_file "$CDI") ]]; then
    [[ $(file_state toolkit "$CDI") != ok || $(cat "$STATE/toolkit-cdi" 2>/dev/null) != "$made_for" ]] || return 0
  elif [[ -e $ROOT$CDI ]] && grep -qE "\.so\.${DRIVER//./\\.}\$" "$ROOT$CDI" &&
    ! { ((${#options[@]})) && grep -q additionalGids "$ROOT$CDI"; }; then
    log "note: $CDI is there, for driver $DRIVER: left as it is"
    return
  fi
  run_streamed "$INSTALL_SECONDS" "$file" nvidia-ctk cdi generate "${options[@]}" "--output=$LOGS/cdi.yaml" ||
    explain "$file" "$NAME: a CDI specification of its cards" "by it $RUNTIME gives cards to containers" \
      "\`nvidia-smi\` there must work first; then run \`pulumi up\` again"
  grep -qE '^ *-? *name: "?all"?$' "$LOGS/cdi.yaml" || die "$NAME: a CDI specification of its cards" "nvidia-ctk found none" \
    "by it $RUNTIME gives cards to containers" "look at \`nvidia-smi -L\` there, and at its nodes in /dev, then run \`pulumi up\` again"
  put_file toolkit "$CDI" 0644 "$(<"$LOGS/cdi.yaml")"
  write_atomically /var/lib/homelab/toolkit-cdi 0600 printf '%s\n' "$made_for"
}

has_refresh_service() { [[ $TARGET != lxc ]] && systemctl cat "$REFRESH" >/dev/null 2>&1 </dev/null; }

# has_fresh_specification - of the service's, of this driver and all of its libraries? Takes `made_for`.
has_fresh_specification() {
  [[ $(cat "$STATE/toolkit-cdi" 2>/dev/null) == "$made_for" ]] && grep -qsE "\.so\.${DRIVER//./\\.}\$" "$ROOT$SERVICES_CDI"
}

# refresh - has the service make its file anew, unless it is fresh; no: it makes none, as it finds no module, or is set to another place.
refresh() {
  ! has_fresh_specification || return 0
  log "having the toolkit's own service make the CDI specification anew"
  run_logged systemctl restart "$REFRESH" || log "note: $REFRESH failed: $OUTPUT"
  need_dir "$STATE"
  write_atomically /var/lib/homelab/toolkit-cdi 0600 printf '%s\n' "$made_for"
  has_fresh_specification || { remove_file /var/lib/homelab/toolkit-cdi && return 1; }
  CHANGED=yes
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
