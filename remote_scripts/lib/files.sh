#!/usr/bin/env bash
# Files that are written whole, are on the disk before anything goes on from there, and can be given back.
#
# STATE (/var/lib/homelab) holds what `revert` needs: files/<layer>/<path> says that we wrote the path (mode, SHA-256; maybe those before),
# kept/<path> is what we found there, sums/<path> is the SHA-256 of that copy, dirs lists the directories that we made, pending/ the steps
# that must still follow, cmdline/ what we put on /etc/kernel/cmdline. It is gone when nothing is managed any more.
#
# A run may end at any command, killed or by a power cut. The next one goes on from what is on the disk then; so
# - copy, sum, record and file are written in this order and taken away in the opposite one, also by `undo`, each flushed before the next:
#   a file is ours only while a record says so, and whatever it replaced is kept, whole, before that;
# - the step that must follow a change (FOLLOWED_BY) is noted before the first change, and the note goes only when what the step made is
#   on the disk;
# - .NAME.homelab-tmp (what NAME will be) and folders .homelab-undo (what files were) are there only while a run works.
STATE=$ROOT/var/lib/homelab
CHANGED=no      # does what this run wrote differ from what was there?
FOLLOWED_BY=''  # the step that must follow whatever this run changes, if any
BEFORE_WRITE=:  # what has to happen before the first change of this run
STEP_NOTED=no   # was it noted by this run?
STEP_BEGUN=no   # and begun?
UNDO=()         # paths that this run touched, newest last; `undo` makes them what they were when the run began
NOT_PUT_BACK='' # of `undo`: where it couldn't
declare -A WAS  # path -> its copy, or "nothing", for each of UNDO
declare -A LINE # name -> what edit_kernel_cmdline (words.sh) put there; its record is settled once nothing is to be undone
# Where there are files of ours, and the folders for what they were.
PLACES=(/etc /usr /var/lib/homelab)

# -- only planned ------------------------------------------------------------------------------------------------------
# What is only planned (the verb `plan`) is noted instead of written. PLANNED: HOW<TAB>WHAT, where HOW is new, changed, given back, removed
# (a file that nobody had there before us) or made (from other files). CHANGED says whether there is anything.
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

# -- flushed -----------------------------------------------------------------------------------------------------------
# Each stops at its first failure by itself: where it is called in a condition, bash does not stop for it.
is_there() { [[ -e $ROOT$1 || -L $ROOT$1 ]]; }

# temporary_for PATH - the name starts with a dot and ends in none of the suffixes that GRUB, initramfs-tools or modprobe read.
temporary_for() { printf '%s' "$ROOT${1%/*}/.${1##*/}.homelab-tmp"; }

# in_place TEMPORARY PATH - TEMPORARY, with ROOT, becomes PATH: its bytes are on the disk before, its name after that.
in_place() {
  { [[ -L $1 ]] || sync "$1"; } && mv -fT "$1" "$ROOT$2" && sync "$ROOT${2%/*}/"
}

# write_atomically PATH MODE - standard input becomes the file; a reader sees the old bytes or the new, never a mixture. It can't know whether
# whoever makes its input has failed: what a program makes goes into a variable first.
write_atomically() {
  local temporary
  temporary=$(temporary_for "$1")
  (umask 077 && cat >"$temporary") && chmod "$2" "$temporary" && in_place "$temporary" "$1"
}

# copy_atomically FROM PATH - the same for a copy, owner and times included; FROM, with ROOT, may be on another file system.
copy_atomically() {
  local temporary
  temporary=$(temporary_for "$2")
  need_dir "$ROOT${2%/*}" && cp -aT --remove-destination "$1" "$temporary" && in_place "$temporary" "$2"
}

# rewrite_atomically PATH - standard input becomes the content of a file that is there; owner and mode stay.
rewrite_atomically() {
  local temporary
  temporary=$(temporary_for "$1")
  cp -aT --remove-destination "$ROOT$1" "$temporary" && cat >"$temporary" && in_place "$temporary" "$1"
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

# -- steps that must follow --------------------------------------------------------------------------------------------
# pending NAME / done_with NAME / is_pending NAME - a step that must follow what was written, also after a power cut.
pending() { mark "/var/lib/homelab/pending/$1"; }
is_pending() { [[ -e $STATE/pending/$1 ]]; }
done_with() {
  is_pending "$1" || return 0
  flush_all && remove_file "/var/lib/homelab/pending/$1"
}

# about_to_change - before anything is written or taken away.
about_to_change() {
  before_the_first_change
  [[ -n $FOLLOWED_BY ]] && ! is_pending "$FOLLOWED_BY" || return 0
  STEP_NOTED=yes
  pending "$FOLLOWED_BY"
}

before_the_first_change() {
  local before=$BEFORE_WRITE
  BEFORE_WRITE=:
  "$before"
}

# begin_step NAME - what it makes is half-made from now on, until `done_with`.
begin_step() {
  before_the_first_change
  STEP_BEGUN=yes
  pending "$1"
}

# -- ours and theirs ---------------------------------------------------------------------------------------------------
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
  printf '%s\n' "$all" | write_atomically /var/lib/homelab/dirs 0600
  need_dir "$ROOT$1"
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
  [[ $PLANNING == no ]] || { note_put "$2" && return; }
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

# keep_edit LAYER PATH - what somebody made of a file of ours is theirs to lose: a copy, where backups lie. Named by its content, so that a
# run that was cut short makes no second one.
EDITS=/var/backups/homelab
keep_edit() {
  local sum copy
  [[ -f $ROOT$2 && -e $STATE/files/$1$2 ]] || return 0
  sum=$(sha256sum <"$ROOT$2")
  # One that we wrote, or what was there before us: a run that was cut short hadn't come further.
  ! grep -qF " ${sum%% *}" "$STATE/files/$1$2" || return 0
  [[ ${sum%% *} != "$(kept_sum "$2")" ]] || return 0
  copy=$EDITS$2.${sum:0:8}
  is_there "$copy" || copy_atomically "$ROOT$2" "$copy"
  log "$2 was edited by hand; what it was is kept in $copy"
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
  printf '%s\n' "$sum" | write_atomically "/var/lib/homelab/sums$1" 0600
}

forget_kept() { remove_file "/var/lib/homelab/kept$1" "/var/lib/homelab/sums$1"; }

kept_sum() {
  local kept=$STATE/kept$1
  if [[ -L $kept ]]; then readlink "$kept"; else cat "$kept"; fi 2>/dev/null | sha256sum | cut -d ' ' -f 1
}

# kept_is_whole PATH - are the bytes to be given back the ones that were kept? (Versions before this one noted no sum.)
kept_is_whole() { [[ ! -e $STATE/sums$1 ]] || { is_there "/var/lib/homelab/kept$1" && [[ $(kept_sum "$1") == "$(<"$STATE/sums$1")" ]]; }; }

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

# -- undone ------------------------------------------------------------------------------------------------------------
# remember PATH... - as they are, unless this run has done so already. In the order in which they are going to be written: `undo` goes
# the other way. The copy is on the file's own file system, so that putting it back is a change of name, for which no disk is too full; and
# not beside the file, since initramfs-tools takes whatever lies there.
remember() {
  local path place was
  for path in "$@"; do
    [[ -z ${WAS[$path]:-} ]] || continue
    was=nothing
    if is_there "$path"; then
      for place in "${PLACES[@]}"; do
        [[ $path != "$place"/* ]] || break
      done
      was=$ROOT$place/.homelab-undo/${#UNDO[@]}
      need_dir "${was%/*}"
      cp -aT --remove-destination "$ROOT$path" "$was"
      [[ -L $was ]] || sync "$was"
    fi
    WAS[$path]=$was
    UNDO+=("$path")
  done
}

# undo - after a failure: every file that this run touched is as it was when the run began. Should one not let itself be put back, it ends
# there: the record and the copy that belong to it stay for the next run.
undo() {
  local i path
  # Without the lock, and with nothing changed: somebody else may be at work.
  [[ -n ${LOCK:-} ]] || ((${#UNDO[@]} > 0)) || return 0
  for ((i = ${#UNDO[@]} - 1; i >= 0; i--)); do
    path=${UNDO[i]}
    if [[ ${WAS[$path]} == nothing ]]; then
      remove_file "$path" || NOT_PUT_BACK=$path
    else
      mv -fT "${WAS[$path]}" "$ROOT$path" || NOT_PUT_BACK=$path
      sync "$ROOT${path%/*}/" || :
    fi
    [[ -z $NOT_PUT_BACK ]] || break
  done
  UNDO=() WAS=() LINE=()
  clear_leftovers
  # Nothing was made of what isn't there any more.
  [[ $STEP_NOTED == no || $STEP_BEGUN == yes || -n $NOT_PUT_BACK ]] || done_with "$FOLLOWED_BY" || :
  STEP_NOTED=no
  tidy || :
  flush_all || :
}

# finish - the run succeeded: nothing is to be undone any more, and what is answered is on the disk.
finish() {
  local name
  UNDO=() WAS=()
  for name in "${!LINE[@]}"; do settle_kernel_cmdline "$name" "${LINE[$name]}"; done
  LINE=()
  STEP_NOTED=no STEP_BEGUN=no
  clear_leftovers
  tidy
  flush_all
}

# settle_kernel_cmdline NAME TEXT - the record of edit_kernel_cmdline (words.sh) says just that.
settle_kernel_cmdline() {
  local record=/var/lib/homelab/cmdline/$1
  if [[ -z $2 ]]; then
    remove_file "$record"
  elif [[ $(<"$ROOT$record") != " $2" ]]; then
    printf ' %s\n' "$2" | write_atomically "$record" 0600
  fi
}

# clear_leftovers - what lies beside files only while a run works; of runs that were cut short, too. The lock is taken.
clear_leftovers() {
  local place places=()
  for place in /etc /usr/local/sbin /usr/share/keyrings /var/lib/homelab; do
    [[ ! -d $ROOT$place ]] || places+=("$ROOT$place")
  done
  # -new, and STATE/undo: of versions before this one.
  ((${#places[@]} == 0)) || find "${places[@]}" -ignore_readdir_race -xdev \( -name '.*.homelab-tmp' -o -name '*.homelab-new' \) ! -type d -delete ||
    log "what an earlier run left could not be removed"
  for place in "${PLACES[@]}"; do rm -rf "$ROOT$place/.homelab-undo"; done
  rm -rf "$STATE/undo"
}

# tidy - removes what is empty: directories that we made, and our own state.
tidy() {
  local dir all left=()
  if [[ -f $STATE/dirs ]]; then
    while IFS= read -r dir; do
      [[ -d $ROOT$dir ]] || continue
      rmdir --ignore-fail-on-non-empty "$ROOT$dir"
      if [[ -d $ROOT$dir ]]; then left+=("$dir"); else sync "$ROOT${dir%/*}/"; fi
    done < <(sort -ru "$STATE/dirs")
    if ((${#left[@]} == 0)); then
      remove_file /var/lib/homelab/dirs
    else
      all=$(printf '%s\n' "${left[@]}" | sort) || return 1
      [[ $all == "$(<"$STATE/dirs")" ]] || printf '%s\n' "$all" | write_atomically /var/lib/homelab/dirs 0600
    fi
  fi
  [[ ! -d $STATE ]] || find "$STATE" -depth -type d -empty -delete
}
