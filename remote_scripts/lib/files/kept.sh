#!/usr/bin/env bash
# What was there before us: kept whole, known by its sum, given back.
# Needs: files/atomic
#
# Gives: make_dir DIR; keep_file PATH, note_kept PATH, forget_kept PATH; kept_sum PATH, kept_is_whole PATH, need_kept PATH;
#   put_kept_back PATH; keep_edit LAYER PATH.
# Where copies lie of what somebody made of our files.
EDITS=/var/backups/homelab

# make_dir DIR - creates it and its parents, remembering which were not there.
make_dir() {
  local dir=$1 missing=() all
  while [[ ! -d $ROOT$dir ]]; do
    missing=("$dir" "${missing[@]}")
    dir=${dir%/*}
  done
  ((${#missing[@]} > 0)) || return 0
  need_dir "$STATE"
  all=$({ printf '%s\n' "${missing[@]}" && { [[ ! -e $STATE/dirs ]] || cat "$STATE/dirs"; }; } | sort -u) || return 1
  write_atomically /var/lib/homelab/dirs 0600 printf '%s\n' "$all"
  need_dir "$ROOT$1"
}

# keep_file PATH - for whoever gets it back. Without a sum a copy counts as whole: the old sum goes first.
keep_file() {
  remove_file "/var/lib/homelab/sums$1"
  copy_atomically "$ROOT$1" "/var/lib/homelab/kept$1"
  note_kept "$1"
}

note_kept() {
  local sum
  need_dir "$STATE/sums${1%/*}"
  sum=$(kept_sum "$1") || return 1
  write_atomically "/var/lib/homelab/sums$1" 0600 printf '%s\n' "$sum"
}

forget_kept() { remove_file "/var/lib/homelab/kept$1" "/var/lib/homelab/sums$1"; }

kept_sum() {
  local kept=$STATE/kept$1 sum
  if [[ -L $kept ]]; then sum=$(readlink "$kept" | sha256sum); else sum=$({ sha256sum <"$kept"; } 2>/dev/null); fi || return 1
  printf '%s' "${sum%% *}"
}

# kept_is_whole PATH - are the bytes to be given back the ones that were kept? (Versions before this one noted no sum.)
kept_is_whole() {
  local sum
  [[ -e $STATE/sums$1 ]] || return 0
  is_there "/var/lib/homelab/kept$1" && sum=$(kept_sum "$1") && [[ $sum == "$(<"$STATE/sums$1")" ]]
}

need_kept() {
  local home=/var/lib/homelab
  kept_is_whole "$1" || die "to give back $1 as it was before this program" \
    "its copy, $home/kept$1, isn't what was kept there: $(stat -c '%s bytes' "$STATE/kept$1" 2>/dev/null || printf 'it is gone')" \
    "written back it would do damage; $1 stays as it is now" \
    "put the file as it was (from a backup) in the place of that copy, remove $home/sums$1, and run the same again; to keep $1 as it is now, remove also $home/kept$1 and $home/files/*$1"
}

# put_kept_back PATH - what was there before us, or nothing.
put_kept_back() {
  if is_there "/var/lib/homelab/kept$1"; then
    copy_atomically "$STATE/kept$1" "$1"
  else
    remove_file "$1"
  fi
}

# keep_edit LAYER PATH - what somebody made of a file of ours is theirs to lose: a copy, where backups lie. Named by its content, so that a
# run that was cut short makes no second one.
keep_edit() {
  local sum copy
  [[ -f $ROOT$2 && -e $STATE/files/$1$2 ]] || return 0
  sum=$(sha256sum <"$ROOT$2")
  # One that we wrote, or what was there before us: a run that was cut short hadn't come further.
  [[ $(<"$STATE/files/$1$2") != *" ${sum%% *}"* ]] || return 0
  [[ ${sum%% *} != "$(kept_sum "$2")" ]] || return 0
  copy=$EDITS$2.${sum:0:8}
  is_there "$copy" || copy_atomically "$ROOT$2" "$copy"
  log "note: $2 was edited by hand; the edited file is kept in $copy"
}
