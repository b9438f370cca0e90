#!/usr/bin/env bash
# Lets one run (`pulumi up` or `pulumi destroy`) at a time be at work on this host: held as long as the client's connection lasts, whatever ends it.
# Needs: files, lock, handover/rest, handover/turn
#
# Arguments: WHO (who is at work, for the message that another one gets; no other run has that name), VMID (of `pass`).
# Changes: /run/homelab/up, which is locked meanwhile, and empty afterwards; /run/homelab/passes, /run/homelab/inside (steps at work in containers hold it),
#   /run/homelab/notes (there while it is held). A step that WHO has started ends where it waits as soon as /run/homelab/up says something else (lib/run_dir.sh, go_on).
# Verbs: hold. It answers at once, and ends with its standard input, or when nothing has come there for a while: a client that was
#   switched off says no goodbye. After the answer come lines for people, which steps have noted (lib/common.sh, log). A line `cancelled` says that the run begins nothing more. pass: VM VMID may take its shared cards from now on, until this run has ended (lib/handover/turn.sh).

# The client says something every ten seconds (homelab/remote/guard.py).
SILENCE_SECONDS=60
# How long the one before may take to notice that its client has gone.
PATIENCE_SECONDS=5
# How long a handover that has begun is waited for; and how long a step of an earlier run. All together: below what a client waits for the answer.
HANDING_SECONDS=45
ENDING_SECONDS=20

hold() {
  local held handed=yes said
  # A host that shuts down need not wait for this one.
  trap - PIPE HUP TERM
  need_run_dir
  exec {held}>>"$RUN/up"
  flock -n "$held" || log "another run is at work: $(of_file "$RUN/up")" # where it restarts this host, nothing else is heard
  flock -w "$PATIENCE_SECONDS" "$held" || die "to be the only run at work on this host" \
    "another one is: $(of_file "$RUN/up")" "two at once would undo each other's changes, and could reboot the host twice" \
    "this run changes nothing more: wait until the other one has ended, then run the same again"
  # At once: a run whose connection was cut comes back, and VMs that it has started itself have their passes by its name.
  printf '%s\n' "$WHO" >"$RUN/up" || log "/run is full: who is at work can't be noted" # and the host is held all the same
  # From here on none begins; one that has begun comes to its end, so that it is known where its card is.
  await_handover "$HANDING_SECONDS" || handed=no
  [[ $handed == no ]] || await_step
  # After that: it may have given some meanwhile, by another connection.
  find_passes "$WHO"
  [[ $handed == yes ]] || is_on_its_way "${PASSED[@]}" || die "no card on its way to a VM that starts" "a handover is at work: $(tail -n 1 "$ROOT$HANDOVER/log" 2>/dev/null || :)" \
    "NVIDIA's driver and containers can't be changed meanwhile; nothing was changed" "wait until it has ended (/var/lib/homelab/handover/log tells), then run the same again"
  need_rest "${PASSED[@]}"
  # Not before: a run that is refused takes no other one its passes.
  drop_other_passes "$WHO"
  : >"$RUN/notes" || log "/run is full: what steps note is shown only while they run"
  printf '{"held":"yes"}\n'
  # What steps note from here on is the client's to tell, line by line.
  tail -n +1 -s 1 --pid=$$ -f "$RUN/notes" 2>/dev/null {held}>&- &
  while read -r -t "$SILENCE_SECONDS" said; do
    [[ $said != cancelled ]] || printf '%s, and was cancelled\n' "$WHO" >"$RUN/up" || :
  done
  kill %% 2>/dev/null || :
  rm -f "$RUN/notes"
  : >"$RUN/up"
}

# await_step - what an earlier run has begun comes to its end, so that no two are at work side by side. Not what this run has begun itself: before it held
# the host, when there was none to be noted, or before its connection was cut.
await_step() {
  local place lock whose
  ((SECONDS < 35)) || ENDING_SECONDS=$PATIENCE_SECONDS
  for place in "$RUN/lock" "$RUN/inside"; do
    exec {lock}>>"$place"
    if flock -w "$ENDING_SECONDS" "$lock"; then
      { : >"$place"; } 2>/dev/null || :
    else
      whose=$(tail -n 1 "$place" 2>/dev/null) || whose=''
      [[ -z $whose || $whose == "$WHO" ]] || refuse_for_step "$whose"
    fi
    exec {lock}>&-
    ENDING_SECONDS=$PATIENCE_SECONDS
  done
}

refuse_for_step() {
  : >"$RUN/up"
  die "to be the only run at work on this host" "a step of an earlier run is still at work, of $1 ($(tail -n 1 "$ROOT$STEP_LOG" 2>/dev/null || :))" \
    "it comes to its end by itself; two runs at once would undo each other's changes" "wait until it has ended (/run/homelab/steps tells), then run the same again"
}

pass() {
  note_pass "$VMID" "$WHO" || die "VM $VMID to take its cards from this host's containers" "$PASSES can't be written" \
    "while a run is at work, no other VM may" "make room in /run, then run \`pulumi up\` again"
  printf '{"passed":"%s"}\n' "$VMID"
}

# Not from /dev/null, as in other scripts: what follows on standard input is the client's.
main() {
  "$1"
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
