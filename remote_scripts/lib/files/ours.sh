#!/usr/bin/env bash
# Files of ours, by layers: written, looked at, taken away.
# Needs: files/atomic, files/kept, files/pending, files/planned, files/undo
#
# Gives: put_file LAYER PATH MODE CONTENT, drop_file LAYER PATH -> CHANGED; find_layer_files LAYER -> FILES;
#   layer_states LAYER; find_state LAYER PATH -> FILE_STATE; file_state LAYER PATH.

# find_states LAYER PATH... - sets STATES (an array of the caller's), by path: ok, changed or missing. Two programs look at all of them.
find_states() {
  local path about mode sum there=()
  local -A sums=() modes=()
  STATES=()
  for path in "${@:2}"; do
    [[ ! -e $ROOT$path ]] || there+=("$ROOT$path")
  done
  if ((${#there[@]} > 0)); then
    while IFS= read -r about; do
      # A name with a backslash has two of them there, and one before the line.
      [[ $about != \\* ]] || { about=${about#?} && about=${about//\\\\/\\}; }
      sums[${about#*  }]=${about%%  *}
    done < <(sha256sum "${there[@]}")
    while IFS= read -r -d '' about; do modes[${about#* }]=${about%% *}; done < <(stat --printf '%a %n\0' -- "${there[@]}")
  fi
  for path in "${@:2}"; do
    STATES[$path]=missing mode='' sum=''
    [[ -e $ROOT$path ]] || continue
    read -r mode sum <"$STATE/files/$1$path" || :
    STATES[$path]=changed
    [[ -z $sum || ${sums[$ROOT$path]:-} != "$sum" || ${modes[$ROOT$path]:-} != "${mode#0}" ]] || STATES[$path]=ok
  done
}

# find_state LAYER PATH - sets FILE_STATE: ok | changed | missing, for a file that we wrote. file_state: says it.
find_state() {
  local -A STATES
  find_states "$1" "$2"
  FILE_STATE=${STATES[$2]}
}

file_state() {
  local FILE_STATE
  find_state "$1" "$2"
  printf '%s' "$FILE_STATE"
}

# put_file LAYER PATH MODE CONTENT - a file of ours; what was there before us is kept for `drop_file`.
put_file() {
  local sum
  sum=$(printf '%s\n' "$4" | sha256sum)
  ! is_put "$1" "$2" "$3" "${sum%% *}" || return 0
  [[ $PLANNING == no ]] || { note_put "$2" "$4" && return; }
  claim_file "$1" "$2" "$3" "${sum%% *}"
  write_atomically "$2" "$3" printf '%s\n' "$4"
  CHANGED=yes
  log "wrote $2"
}

# is_put LAYER PATH MODE SHA256 - is it there as we would write it, and ours?
is_put() {
  local record=$STATE/files/$1$2 latest FILE_STATE
  [[ -e $record ]] && read -r latest <"$record" && [[ $latest == "$3 $4" ]] && find_state "$1" "$2" && [[ $FILE_STATE == ok ]]
}

# claim_file LAYER PATH MODE SHA256 - notes that we are about to write it, and keeps what somebody else has there.
claim_file() {
  local path=$2 record=/var/lib/homelab/files/$1$2 earlier
  about_to_change
  keep_edit "$1" "$path"
  remember "/var/lib/homelab/kept$path" "/var/lib/homelab/sums$path" "$record" "$path"
  if [[ ! -e $ROOT$record ]]; then
    if is_there "$path"; then keep_file "$path"; else forget_kept "$path"; fi
  fi
  need_dir "$ROOT${record%/*}"
  # With the one before: until the file is written, it still is what that says, and nobody's edit.
  { while IFS= read -r earlier && [[ $earlier == "$3 $4" ]]; do :; done <"$ROOT$record"; } 2>/dev/null || :
  write_atomically "$record" 0600 printf '%s\n' "$3 $4" ${earlier:+"$earlier"}
  make_dir "${path%/*}"
}

# drop_file LAYER PATH - takes our file away and puts back what was there before it. Nothing happens if we never wrote it.
drop_file() {
  local path=$2 record=/var/lib/homelab/files/$1$2
  if [[ $PLANNING == yes ]]; then
    [[ ! -e $ROOT$record ]] || { need_kept "$path" && note_dropped "$path"; }
    return 0
  fi
  if [[ ! -e $ROOT$record ]]; then
    # A run that was cut short before it wrote anything had kept it already.
    compgen -G "$STATE/files/*$path" >/dev/null || forget_kept "$path"
    return 0
  fi
  need_kept "$path"
  about_to_change
  keep_edit "$1" "$path"
  remember "$path" "$record" "/var/lib/homelab/sums$path" "/var/lib/homelab/kept$path"
  put_kept_back "$path"
  remove_file "$record"
  forget_kept "$path"
  CHANGED=yes
  log "gave back $path"
}

# find_layer_files LAYER - sets FILES: the paths that we wrote for it, sorted.
find_layer_files() {
  local record
  FILES=()
  shopt -s globstar dotglob nullglob
  for record in "$STATE/files/$1"/**; do
    [[ ! -f $record || -L $record || ${record##*/} == .*.homelab-tmp ]] || FILES+=("${record#"$STATE/files/$1"}")
  done
  shopt -u globstar dotglob nullglob
}

# layer_states LAYER - the same, a line each, after its state and a blank.
layer_states() {
  local path FILES
  local -A STATES
  find_layer_files "$1"
  find_states "$1" "${FILES[@]}"
  for path in "${FILES[@]}"; do printf '%s %s\n' "${STATES[$path]}" "$path"; done
}
