#!/usr/bin/env bash
# What is only planned (the verb `plan`) is noted instead of written.
# Needs: files/atomic
#
# Gives: note_planned HOW WHAT, note_diff PATH TEXT, note_put PATH [TEXT], note_dropped PATH -> PLANNED, CHANGED; answer_planned.
# PLANNED: HOW<TAB>WHAT, where HOW is new, changed, given back, removed (a file that nobody had there before us) or made (from other
# files). CHANGED says whether there is anything.
PLANNING=no
PLANNED=()

note_planned() { # HOW WHAT
  PLANNED+=("$1"$'\t'"$2")
  CHANGED=yes
}

# note_diff PATH TEXT - DIFFS[PATH]: from what is there to TEXT, as a unified diff; a host without diff shows none.
note_diff() {
  local old=/dev/null
  declare -gA DIFFS
  [[ ! -f $ROOT$1 ]] || old=$ROOT$1
  DIFFS[$1]=$(diff -u --label "$1" --label "$1" "$old" - <<<"$2" 2>/dev/null) || :
}

# note_put PATH [TEXT] - that it would be written.
note_put() {
  if is_there "$1"; then note_planned changed "$1"; else note_planned new "$1"; fi
  (($# < 2)) || note_diff "$1" "$2"
}

# note_dropped PATH - that it would be taken away.
note_dropped() { if is_there "/var/lib/homelab/kept$1"; then note_planned 'given back' "$1"; else note_planned removed "$1"; fi; }

# answer_planned - the answer of the verb `plan`: {"files":[{"how","what","diff"}]}
answer_planned() {
  local line path separator=''
  declare -gA DIFFS
  printf '{"files":['
  for line in "${PLANNED[@]}"; do
    path=${line#*$'\t'}
    [[ $line != 'given back'* || ! -f $STATE/kept$path ]] || note_diff "$path" "$(<"$STATE/kept$path")"
    printf '%s{"how":' "$separator"
    json_string "${line%%$'\t'*}"
    json_entry what "$path"
    json_entry diff "${DIFFS[$path]:-}"
    printf '}'
    separator=,
  done
  printf ']}\n'
}
