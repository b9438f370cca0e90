#!/usr/bin/env bash
# Starts or shuts down a VM that takes a card from this host's containers, as Proxmox VE's own buttons do: the handover is theirs (handover_host.sh).
# Needs: files, guests, handover/places, read/text
#
# Arguments: CARD (its name), VMID (0: none, of `story`), SECONDS_OFF (for a shutdown), CUT (yes: the VM's power is cut after that time), FROM (how much
#   of the story is known already, in bytes).
# Changes: whether the VM runs; with it what a handover changes.
# Verbs: start_vm, shut_down_vm; story, which changes nothing.
# Answer: {"well":"yes|no","said": the end of what qm says}; of story {"size","state": the lines of what is noted of the card,"story": what is new,
#   "runs": yes | no | unknown, of the VM}.

start_vm() { answer_with qm start "$VMID"; }

shut_down_vm() {
  local words=(qm shutdown "$VMID" --timeout "$SECONDS_OFF")
  [[ $CUT != yes ]] || words+=(--forceStop 1)
  answer_with "${words[@]}"
}

# answer_with COMMAND... - its task has the rest of what it says. It has its own time limits.
answer_with() {
  local well=yes said
  said=$("$@" 2>&1 </dev/null) || well=no
  printf '{"well":"%s","said":%s}\n' "$well" "$(json_string "$(tail -n 12 <<<"$said" | tail -c 4000)")"
}

story() {
  local size file=$ROOT$HANDOVER/log text='' runs=unknown
  size=$(stat -c %s "$file" 2>/dev/null) || size=0
  # It is cut at its beginning now and then: what is new can't be told apart then, and the next lines can.
  ((size <= FROM)) || text=$(tail -c "+$((FROM + 1))" "$file" 2>/dev/null | head -c "$((size - FROM))") || text=''
  # Before what is noted: a VM that has ended since has the card still, and the next look sees where it goes.
  if ((VMID > 0)); then
    find_power qm "$VMID" 0 # whoever looks on asks again
    case $POWER_NOW in on) runs=yes ;; off) runs=no ;; esac
  fi
  printf '{"size":%s,"runs":"%s","state":%s,"story":%s}\n' "$size" "$runs" "$(json_string "$(cat "$ROOT$HANDOVER/$CARD.state" 2>/dev/null || :)")" "$(json_string "$text")"
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
