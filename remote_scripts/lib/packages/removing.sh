#!/usr/bin/env bash
# A layer's packages removed; what it changed comes back, and what others need by now stays.
# Needs: packages/installing
#
# Gives: remove_packages LAYER -> KEPT, CHANGED; leave_what_others_need LOG NAME... -> GONE, KEPT;
#   drop_packages LAYER WHAT WHY NAME... -> CHANGED.
KEPT=() # of `remove_packages`: what it left, as others need it

# remove_packages LAYER - purges what the layer added, and brings back what it changed or removed. What others need by now stays: KEPT.
remove_packages() {
  local layer=$1 name gone=() back=() file=$LOGS/apt
  KEPT=()
  read_installed
  settle_record "$layer"
  ((${#NOW[@]} > 0)) || return 0
  repair_packages
  find_versions_to_restore
  if ((${#back[@]} > 0)); then
    # Ours that stand in their way go; nobody else's.
    if simulated "$file" install --allow-downgrades --no-install-recommends "${back[@]}"; then
      require_others_kept "$file" "to bring back ${back[*]}"
      log "bringing back ${back[*]}"
      apt_get "$file" install --allow-downgrades --no-install-recommends "${back[@]}" || explain_install "$file" "${back[*]}"
      mark_as_before "${back[@]%%=*}"
      CHANGED=yes
    else
      log "note: what was there before can't be brought back: ${back[*]}; $(tail -n 1 "$file")"
      KEPT+=("${back[@]%%=*}")
    fi
    read_installed
  fi
  for name in "${!NOW[@]}"; do
    [[ ${BEFORE[$name]} != - || (-z ${PRESENT[$name]:-} && -z ${LEFT[$name]:-}) ]] || gone+=("$name")
  done
  leave_what_others_need "$file" "${gone[@]}"
  if ((${#GONE[@]} > 0)); then
    log "removing ${GONE[*]}"
    apt_get "$file" purge "${GONE[@]}" || explain "$file" "to remove ${GONE[*]}" "this program installed them"
    CHANGED=yes
  fi
  remove_file "/var/lib/homelab/packages/$layer"
}

# find_versions_to_restore - `back`: NAME=VERSION of what had another version, or was removed, if that version can still be had.
find_versions_to_restore() {
  local name
  for name in "${!NOW[@]}"; do
    [[ ${BEFORE[$name]} != - && ${PRESENT[$name]:-} != "${BEFORE[$name]}" ]] || continue
    if apt-cache madison "$name" | awk -v version="${BEFORE[$name]}" '$3 == version { found = 1 } END { exit !found }'; then
      back+=("$name=${BEFORE[$name]}")
    else
      log "note: $name was ${BEFORE[$name]} before, which no repository has any more: it stays ${PRESENT[$name]:-away}"
      KEPT+=("$name")
    fi
  done
}

# mark_as_before NAME... - what was installed for others alone is so again.
mark_as_before() {
  local name auto=()
  for name in "$@"; do [[ ${MARK[$name]} != auto ]] || auto+=("$name"); done
  ((${#auto[@]} == 0)) || run_apt "$LOGS/mark" apt-mark auto "${auto[@]}" || log "apt-mark auto ${auto[*]} failed"
}

# leave_what_others_need LOG NAME... - GONE: those that can go without anything else going or coming; the others are in KEPT.
leave_what_others_need() {
  local file=$1 name
  shift
  GONE=("$@")
  while ((${#GONE[@]} > 0)); do
    simulated "$file" purge "${GONE[@]}" || explain "$file" "to remove ${GONE[*]}" "this program installed them"
    only_these "$file" "${GONE[@]}" && return 0
    # Each alone, together with those of ours that need it: that is what apt adds.
    local left=()
    for name in "${GONE[@]}"; do
      if simulated "$file" purge "$name" && only_these "$file" "${GONE[@]}"; then
        left+=("$name")
      else
        KEPT+=("$name")
        log "note: $name stays: others need it by now"
      fi
    done
    ((${#left[@]} < ${#GONE[@]})) || die "to remove ${GONE[*]}" "apt would change others for that: $(announced "$file" | cut -f 1 | tr '\n' ' ')" \
      "they aren't this program's to change" "see \`apt-get -s purge ${GONE[*]}\`, and remove them by hand"
    GONE=("${left[@]}")
  done
}

# drop_packages LAYER WHAT WHY NAME... - purges packages of the layer that aren't wanted any more, but for those that others need by now. WHAT: for
# the log; WHY: for the message where it fails.
drop_packages() {
  local layer=$1 what=$2 why=$3 file=$LOGS/apt
  shift 3
  (($# > 0)) || return 0
  leave_what_others_need "$file" "$@"
  ((${#GONE[@]} > 0)) || return 0
  log "removing $what: ${GONE[*]}"
  apt_get "$file" purge "${GONE[@]}" || explain "$file" "to remove ${GONE[*]}" "$why"
  CHANGED=yes
  read_installed
  settle_record "$layer"
}

# only_these SIMULATION NAME... - does nothing change but the removal of these?
only_these() {
  local file=$1
  shift
  ! announced "$file" | awk -F'\t' -v names=" $* " '$3 != "-" || index(names, " " $1 " ") == 0 { found = 1 } END { exit !found }'
}
