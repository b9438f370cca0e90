#!/usr/bin/env bash
# Files that are written whole and can be given back.
#
# STATE (/var/lib/homelab) holds what `revert` needs: files/<layer>/<path> says that we wrote the path (mode, SHA-256),
# kept/<path> is what we found there, dirs lists the directories that we made, pending/ the steps that must still follow,
# cmdline/ what we put on /etc/kernel/cmdline. It is gone when nothing is managed any more.
STATE=$ROOT/var/lib/homelab
CHANGED=no # does what this run wrote differ from what was there?
UNDO=()    # path<TAB>copy (empty: there was nothing), newest last: what `undo` puts back when a run fails half-way

# pending NAME / done_with NAME / is_pending NAME - a step that must follow what was written, also after a power cut.
pending() { mkdir -p "$STATE/pending" && : >"$STATE/pending/$1"; }
done_with() { rm -f "$STATE/pending/$1"; }
is_pending() { [[ -e $STATE/pending/$1 ]]; }

# make_dir DIR - creates it and its parents, remembering which were not there.
make_dir() {
  local dir=$1 missing=()
  while [[ ! -d $ROOT$dir ]]; do
    missing=("$dir" "${missing[@]}")
    dir=${dir%/*}
  done
  mkdir -p "$STATE"
  for dir in "${missing[@]}"; do
    printf '%s\n' "$dir" >>"$STATE/dirs"
    mkdir "$ROOT$dir"
  done
}

# The temporary name starts with a dot and ends in none of the suffixes that GRUB, initramfs-tools or modprobe read.
temporary_for() { printf '%s' "$ROOT${1%/*}/.${1##*/}.homelab-tmp"; }

# write_atomically PATH MODE - standard input becomes the file; a reader sees the old bytes or the new, never a mixture.
write_atomically() {
  local temporary
  temporary=$(temporary_for "$1")
  cat >"$temporary"
  chmod "$2" "$temporary"
  sync "$temporary"
  mv -fT "$temporary" "$ROOT$1"
}

# copy_atomically FROM PATH - the same for a copy, owner and times included; FROM may be on another file system.
copy_atomically() {
  local temporary
  temporary=$(temporary_for "$2")
  mkdir -p "$ROOT${2%/*}"
  cp -aT "$1" "$temporary"
  mv -fT "$temporary" "$ROOT$2"
}

# remember PATH - so that `undo` can put back what is there now.
remember() {
  local copy=
  if [[ -e $ROOT$1 ]]; then
    mkdir -p "$STATE/undo"
    copy=$STATE/undo/${#UNDO[@]}
    cp -aT "$ROOT$1" "$copy"
  fi
  UNDO+=("$1"$'\t'"$copy")
}

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
  claim_file "$1" "$2" "$3" "${sum%% *}"
  write_atomically "$2" "$3" <"$4"
  CHANGED=yes
  log "wrote $2"
}

# is_put LAYER PATH MODE SHA256 - is it there as we would write it, and ours?
is_put() {
  local record=$STATE/files/$1$2
  [[ -e $record && $(<"$record") == "$3 $4" && $(file_state "$1" "$2") == ok ]]
}

# claim_file LAYER PATH MODE SHA256 - notes that we are about to write it, and keeps what somebody else has there.
claim_file() {
  local path=$2 record=/var/lib/homelab/files/$1$2 kept=/var/lib/homelab/kept$2
  remember "$path"
  remember "$record"
  if [[ -e $ROOT$path && ! -e $ROOT$record ]]; then
    remember "$kept"
    copy_atomically "$ROOT$path" "$kept"
  fi
  mkdir -p "$ROOT${record%/*}"
  printf '%s %s\n' "$3" "$4" | write_atomically "$record" 0600
  make_dir "${path%/*}"
}

# drop_file LAYER PATH - takes our file away and puts back what was there before it. Nothing happens if we never wrote it.
drop_file() {
  local record=/var/lib/homelab/files/$1$2 kept=/var/lib/homelab/kept$2
  [[ -e $ROOT$record ]] || return 0
  remember "$2"
  remember "$record"
  remember "$kept"
  if [[ -e $ROOT$kept ]]; then
    copy_atomically "$ROOT$kept" "$2"
  else
    rm -f "$ROOT$2"
  fi
  rm -f "$ROOT$record" "$ROOT$kept" "$(temporary_for "$2")"
  CHANGED=yes
  log "gave back $2"
}

# layer_files LAYER - the paths that we wrote for it.
layer_files() {
  [[ ! -d $STATE/files/$1 ]] || find "$STATE/files/$1" -type f -printf '/%P\n' | sort
}

# undo - after a failure: every file that this run touched is as it was when the run began.
undo() {
  local i path copy
  for ((i = ${#UNDO[@]} - 1; i >= 0; i--)); do
    IFS=$'\t' read -r path copy <<<"${UNDO[i]}"
    if [[ -n $copy ]]; then
      copy_atomically "$copy" "$path"
    else
      rm -f "$ROOT$path"
    fi
  done
  UNDO=()
  tidy
}

# finish - the run succeeded: nothing is to be undone any more.
finish() {
  UNDO=()
  tidy
}

# tidy - removes what is empty: directories that we made, and our own state.
tidy() {
  local dir left=()
  rm -rf "$STATE/undo"
  if [[ -f $STATE/dirs ]]; then
    while IFS= read -r dir; do
      [[ ! -d $ROOT$dir ]] || rmdir --ignore-fail-on-non-empty "$ROOT$dir"
      [[ ! -d $ROOT$dir ]] || left+=("$dir")
    done < <(sort -ru "$STATE/dirs")
    rm -f "$STATE/dirs"
    ((${#left[@]} == 0)) || printf '%s\n' "${left[@]}" >"$STATE/dirs"
  fi
  [[ ! -d $STATE ]] || find "$STATE" -depth -type d -empty -delete
}
