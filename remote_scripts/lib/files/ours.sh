#!/usr/bin/env bash
# Files of ours, by layers: written, looked at, taken away.
# Needs: files/atomic, files/kept, files/pending, files/planned, files/undo
#
# Gives: put_file LAYER PATH MODE CONTENT, put_copy LAYER PATH MODE FILE, drop_file LAYER PATH -> CHANGED; layer_files LAYER;
#   file_state LAYER PATH.

# file_state LAYER PATH - ok | changed | missing, for a file that we wrote.
file_state() {
  local mode sum
  [[ -e $ROOT$2 ]] || { printf missing && return; }
  read -r mode sum <"$STATE/files/$1$2"
  [[ $(sha256sum <"$ROOT$2") == "$sum "* && $(stat -c %a "$ROOT$2") == "${mode#0}" ]] && printf ok || printf changed
}

# put_file LAYER PATH MODE CONTENT - a file of ours; what was there before us is kept for `drop_file`.
put_file() {
  local sum
  sum=$(printf '%s\n' "$4" | sha256sum)
  ! is_put "$1" "$2" "$3" "${sum%% *}" || return 0
  [[ $PLANNING == no ]] || { note_put "$2" "$4" && return; }
  claim_file "$1" "$2" "$3" "${sum%% *}"
  printf '%s\n' "$4" | write_atomically "$2" "$3"
  CHANGED=yes
  log "wrote $2"
}

# put_copy LAYER PATH MODE FILE - the same with the content of FILE, which may be binary.
put_copy() {
  local sum
  sum=$(sha256sum <"$4")
  ! is_put "$1" "$2" "$3" "${sum%% *}" || return 0
  [[ $PLANNING == no ]] || { note_put "$2" && return; }
  claim_file "$1" "$2" "$3" "${sum%% *}"
  write_atomically "$2" "$3" <"$4"
  CHANGED=yes
  log "wrote $2"
}

# is_put LAYER PATH MODE SHA256 - is it there as we would write it, and ours?
is_put() {
  local record=$STATE/files/$1$2 latest
  [[ -e $record ]] && read -r latest <"$record" && [[ $latest == "$3 $4" && $(file_state "$1" "$2") == ok ]]
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
  earlier=$(grep -vxFm 1 "$3 $4" "$ROOT$record" 2>/dev/null) || earlier=''
  printf '%s\n' "$3 $4" ${earlier:+"$earlier"} | write_atomically "$record" 0600
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

# layer_files LAYER - the paths that we wrote for it.
layer_files() {
  [[ ! -d $STATE/files/$1 ]] || find "$STATE/files/$1" -type f ! -name '.*.homelab-tmp' -printf '/%P\n' | sort
}
