#!/usr/bin/env bash
# After a failure every file is as it was when the run began; after a success nothing of the run is left beside the files.
# Needs: files/atomic, files/pending, progress
#
# Gives: remember PATH...; undo -> NOT_PUT_BACK; finish; clear_leftovers; tidy.
UNDO=()         # paths that this run touched, newest last; `undo` makes them what they were when the run began
NOT_PUT_BACK='' # of `undo`: where it couldn't
declare -A WAS  # path -> its copy, or "nothing", for each of UNDO
# Where there are files of ours, and the folders for what they were.
PLACES=(/etc /usr /var/lib/homelab)

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
  UNDO=() WAS=()
  clear_leftovers
  tidy || :
  flush_all || :
}

# finish - the run succeeded: nothing is to be undone any more, and what is answered is on the disk.
finish() {
  UNDO=() WAS=()
  clear_own_leftovers
  tidy
  drop_step_log
  flush_all
}

# clear_leftovers - what lies beside files only while a run works; of runs that were cut short, too. The lock is taken.
clear_leftovers() {
  local place places=()
  for place in /etc /usr/local/sbin /usr/share/keyrings /var/lib/homelab; do
    [[ ! -d $ROOT$place ]] || places+=("$ROOT$place")
  done
  # -new: of versions before this one.
  ((${#places[@]} == 0)) || find "${places[@]}" -ignore_readdir_race -xdev \( -name '.*.homelab-tmp' -o -name '*.homelab-new' \) ! -type d -delete ||
    log "note: what an earlier run left could not be removed"
  clear_own_leftovers
}

# clear_own_leftovers - of this run alone, which knows their names: no program looks for them.
clear_own_leftovers() {
  local place left=()
  # A folder is none of ours, whatever its name.
  for place in "${TEMPORARIES[@]}"; do [[ ! -f $place && ! -L $place ]] || left+=("$place"); done
  TEMPORARIES=()
  # STATE/undo: of versions before this one.
  for place in "${PLACES[@]/%//.homelab-undo}" "${STATE#"$ROOT"}/undo"; do
    ! is_there "$place" || left+=("$ROOT$place")
  done
  ((${#left[@]} == 0)) || rm -rf "${left[@]}"
}

# tidy - removes what is empty: directories that we made, and our own state.
tidy() {
  local dir all left=()
  if [[ -f $STATE/dirs ]]; then
    while IFS= read -r dir; do
      [[ -d $ROOT$dir ]] || continue
      ! has_empty "$ROOT$dir" || rmdir --ignore-fail-on-non-empty "$ROOT$dir"
      if [[ -d $ROOT$dir ]]; then left=("$dir" "${left[@]}"); else sync "$ROOT${dir%/*}/"; fi
    done < <(sort -ru "$STATE/dirs")
    if ((${#left[@]} == 0)); then
      remove_file /var/lib/homelab/dirs
    else
      printf -v all '%s\n' "${left[@]}"
      all=${all%$'\n'}
      [[ $all == "$(<"$STATE/dirs")" ]] || write_atomically /var/lib/homelab/dirs 0600 printf '%s\n' "$all"
    fi
  fi
  [[ ! -d $STATE ]] || ! has_empty "$STATE" below || find "$STATE" -depth -type d -empty -delete
}

# has_empty FOLDER [below] - is it empty, or with `below` any folder in it? Mostly none is, so that no program is started.
has_empty() {
  local dir inside status=1
  shopt -s dotglob globstar nullglob
  for dir in "$1/" ${2:+"$1"/**/}; do
    inside=("$dir"*)
    ((${#inside[@]} > 0)) || status=0
  done
  shopt -u dotglob globstar nullglob
  return "$status"
}
