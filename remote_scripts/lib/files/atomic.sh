#!/usr/bin/env bash
# A file is the old one or the new one, and on the disk before anything goes on. Each of these stops at its first failure by itself:
# where it is called in a condition, bash does not stop for it.
# Needs: common
#
# Gives: is_there PATH; temporary_for PATH -> TEMPORARY, TEMPORARIES; in_place TEMPORARY PATH; write_atomically PATH MODE [COMMAND...],
#   copy_atomically FROM PATH; remove_file PATH...; need_dir DIR; mark PATH; flush_all. A PATH is without ROOT.
STATE=$ROOT/var/lib/homelab
CHANGED=no     # does what this run wrote differ from what was there?
TEMPORARIES=() # of this run, with ROOT; most aren't there any more

# Each stops at its first failure by itself: where it is called in a condition, bash does not stop for it.
is_there() { [[ -e $ROOT$1 || -L $ROOT$1 ]]; }

# temporary_for PATH - sets TEMPORARY: a name beside it. It starts with a dot and ends in none of the suffixes that GRUB, initramfs-tools or modprobe read.
temporary_for() {
  TEMPORARY=$ROOT${1%/*}/.${1##*/}.homelab-tmp
  TEMPORARIES+=("$TEMPORARY")
}

# in_place TEMPORARY PATH - TEMPORARY, with ROOT, becomes PATH: its bytes are on the disk before, its name after that.
in_place() {
  { [[ -L $1 ]] || sync "$1"; } && mv -fT "$1" "$ROOT$2" && sync "$ROOT${2%/*}/"
}

# write_atomically PATH MODE [COMMAND...] - what COMMAND says (printf: no program is started) becomes the file, or standard input; a reader sees the old
# bytes or the new, never a mixture. Of standard input it can't know whether whoever makes it has failed: what a program makes goes into a variable first.
write_atomically() {
  local TEMPORARY LEFT=no written=yes
  temporary_for "$1"
  [[ ! -e $TEMPORARY ]] || LEFT=yes # by a run that was cut short
  umask 077
  # A function that ends its shell would take the message for the person along, into the file.
  { if (($# == 2)); then cat; elif [[ $3 == printf ]]; then "${@:3}"; else ("${@:3}"); fi >"$TEMPORARY"; } || written=no
  umask 022 # as common.sh has set it
  [[ $written == yes ]] || { log "$1 couldn't be written" && return 1; }
  need_mode "$@" && in_place "$TEMPORARY" "$1"
}

# need_mode PATH MODE - TEMPORARY was made with 0600, unless it was there, and but for what a folder's default ACL says; of a record nobody compares it.
need_mode() { [[ $LEFT == no && $2 == 0600 && $1 == /var/lib/homelab/* ]] || chmod "$2" "$TEMPORARY"; }

# copy_atomically FROM PATH - the same for a copy, owner and times included; FROM, with ROOT, may be on another file system.
copy_atomically() {
  local TEMPORARY
  temporary_for "$2"
  need_dir "$ROOT${2%/*}" && cp -aT --remove-destination "$1" "$TEMPORARY" && in_place "$TEMPORARY" "$2"
}

# remove_file PATH...
remove_file() {
  local path
  for path in "$@"; do
    is_there "$path" || continue
    rm -f "$ROOT$path" || return 1
    sync "$ROOT${path%/*}/"
  done
}

# need_dir DIR - with ROOT; and those above it.
need_dir() {
  local dir=$1 missing=()
  while [[ ! -d $dir ]]; do
    missing+=("${dir%/*}/")
    dir=${dir%/*}
  done
  ((${#missing[@]} > 0)) || return 0
  mkdir -p "$1"
  sync "${missing[@]}"
}

# mark PATH - an empty file, which says something by being there.
mark() {
  need_dir "$ROOT${1%/*}"
  : >"$ROOT$1"
  sync "$ROOT$1" "$ROOT${1%/*}/"
}

# flush_all - the file systems of all that we write, and of all that is made of it. A boot loader reads without the journal.
flush_all() {
  local place places=()
  for place in /etc /var/lib /boot; do
    [[ ! -d $ROOT$place ]] || places+=("$ROOT$place")
  done
  sync -f "${places[@]}"
}
