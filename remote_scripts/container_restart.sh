#!/usr/bin/env bash
# Brings a container's changed configuration into force: a shutdown and a start, only if it runs and was changed. Then its power.
# Needs: container, handover/rest
#
# Arguments: CTID, METHOD, MINORS, FUNCTIONS, CARDS, TIMEOUT, OTHERWISE (as of container_gpus.sh), POWER (keep | running | stopped).
# Changes: whether the container runs. If it won't go off, its configuration is put back to what it runs with.
# Verbs: apply.
# Answer: {"state","restarted"}.

apply() {
  local restarted=no
  take_lock
  need_rest
  CHANGED=no LOOK_INSIDE=no
  set_up # where an earlier restart failed, the configuration was put back
  if [[ -e $ROOT$RECORDS/$CTID/restart ]] && is_up; then
    shut_down_to_start || refuse
  fi
  in_force
  ! is_owed || restarted=yes
  [[ $restarted == yes ]] || log "container $CTID needs no restart: it is off, or has what its configuration says"
  case $POWER in
    running) is_up || start_up ;;
    stopped) ! is_up || shut_down || refuse ;;
    *) start_interrupted ;;
  esac
  remove_file "$RECORDS/$CTID/ran"
  tidy
  printf '{"state":"%s","restarted":"%s"}\n' "$(is_up && printf running || printf stopped)" "$restarted"
}

refuse() {
  local said=$OUTPUT state="its configuration stays as it was written, and takes effect at its next start"
  ! put_back || state="it runs on, and its configuration is as it was before"
  die "container $CTID off within $TIMEOUT s" "it still runs: $said" "$state" \
    "see what keeps it (\`pct exec $CTID -- ps\`), give it more time (shutdown.timeout), or set shutdown.otherwise: stop; then run \`pulumi up\` again"
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
