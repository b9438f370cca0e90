#!/usr/bin/env bash
# What is only planned (the verb `plan`) is noted instead of written.
# Needs: files/atomic
#
# Gives: note_planned HOW WHAT, note_put PATH, note_dropped PATH -> PLANNED, CHANGED; answer_planned.
# PLANNED: HOW<TAB>WHAT, where HOW is new, changed, given back, removed (a file that nobody had there before us) or made (from other
# files). CHANGED says whether there is anything.
PLANNING=no
PLANNED=()

note_planned() { # HOW WHAT
  PLANNED+=("$1"$'\t'"$2")
  CHANGED=yes
}

# note_put PATH - that it would be written.
note_put() { if is_there "$1"; then note_planned changed "$1"; else note_planned new "$1"; fi; }

# note_dropped PATH - that it would be taken away.
note_dropped() { if is_there "/var/lib/homelab/kept$1"; then note_planned 'given back' "$1"; else note_planned removed "$1"; fi; }

# answer_planned - the answer of the verb `plan`: {"files":[{"how","what"}]}
answer_planned() {
  local line separator=''
  printf '{"files":['
  for line in "${PLANNED[@]}"; do
    printf '%s{"how":%s,"what":%s}' "$separator" "$(json_string "${line%%$'\t'*}")" "$(json_string "${line#*$'\t'}")"
    separator=,
  done
  printf ']}\n'
}
