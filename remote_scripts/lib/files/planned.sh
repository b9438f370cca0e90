#!/usr/bin/env bash
# What is only planned (the verb `plan`) is noted instead of written.
# Needs: files/atomic
#
# Gives: note_planned HOW WHAT, note_diff PATH TEXT, note_put PATH [TEXT], note_dropped PATH -> PLANNED, CHANGED; answer_planned.
# PLANNED: HOW<TAB>WHAT, where HOW is new, changed, given back, removed (a file that nobody had there before us) or made (from other
# files). CHANGED says whether there is anything.
PLANNING=no
PLANNED=()
declare -A DIFFS=() # PATH -> a unified diff from what is there

note_planned() { # HOW WHAT
  PLANNED+=("$1"$'\t'"$2")
  CHANGED=yes
}

# note_diff PATH TEXT - from what is there to TEXT; a host without diff shows none.
note_diff() {
  local old=/dev/null
  [[ ! -f $ROOT$1 ]] || old=$ROOT$1
  DIFFS[$1]=$(diff -u --label "$1" --label "$1" "$old" - <<<"$2" 2>/dev/null) || :
}

# note_put PATH [TEXT] - that it would be written.
note_put() {
  if is_there "$1"; then note_planned changed "$1"; else note_planned new "$1"; fi
  (($# < 2)) || note_diff "$1" "$2"
}

# note_dropped PATH - that it would be taken away.
note_dropped() {
  local kept=/var/lib/homelab/kept$1
  if is_there "$kept"; then
    note_planned 'given back' "$1"
    [[ ! -f $STATE/kept$1 ]] || note_diff "$1" "$(<"$STATE/kept$1")"
  else
    note_planned removed "$1"
  fi
}

# answer_planned - the answer of the verb `plan`: {"files":[{"how","what","diff"}]}
answer_planned() {
  local line separator=''
  printf '{"files":['
  for line in "${PLANNED[@]}"; do
    printf '%s{"how":%s,"what":%s,"diff":%s}' "$separator" "$(json_string "${line%%$'\t'*}")" "$(json_string "${line#*$'\t'}")" \
      "$(json_string "${DIFFS[${line#*$'\t'}]:-}")"
    separator=,
  done
  printf ']}\n'
}
