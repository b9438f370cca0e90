#!/usr/bin/env bash
# What is noted of a container, in /var/lib/homelab/containers/CTID (container.sh says what).
# Needs: files, container/conf
#
# Gives: record_dir; note NAME, noted NAME; keep_record; note_change, forget_change; in_force.

record_dir() { printf '/var/lib/homelab/containers/%s' "$CTID"; }

# note NAME - standard input becomes that part of the record.
note() {
  need_dir "$ROOT$(record_dir)"
  write_atomically "$(record_dir)/$1" 0600
}

noted() { [[ ! -r $ROOT$(record_dir)/$1 ]] || cat "$ROOT$(record_dir)/$1"; }

keep_record() {
  printf '%s\n' "${WANT[@]}" | sed '/^$/d' | note ours
  printf '%s\n%s\n%s\n' "$METHOD" "$MINORS" "$FUNCTIONS" | note wanted
}

# note_change - before anything is written: all that may be ours afterwards, whatever happens in between.
note_change() {
  local revision
  [[ -e $ROOT$(record_dir)/before ]] || {
    printf '%s' "$TEXT" | note before
    printf '%s\n' "${OURS[@]}" | sed '/^$/d' | note ours_before
    noted wanted | note wanted_before
  }
  printf '%s\n' "${OURS[@]}" "${WANT[@]}" | sed '/^$/d' | sort -u | note ours
  revision=$(noted revision)
  printf '%s\n' "$((${revision:-0} + 1))" | note revision
  ! is_up || : | note restart
}

# forget_change - nothing was written: the record is what it was.
forget_change() {
  local dir
  dir=$ROOT$(record_dir)
  [[ ! -e $dir/ours_before ]] || mv -fT "$dir/ours_before" "$dir/ours"
  [[ ! -e $dir/wanted_before ]] || mv -fT "$dir/wanted_before" "$dir/wanted"
  [[ -s $dir/ours ]] || rm -f "$dir/ours"
  [[ -s $dir/wanted ]] || rm -f "$dir/wanted"
  rm -f "$dir/before" "$dir/restart" "$dir/after"
  [[ -e $dir/wanted ]] || rm -rf "$dir"
}

# in_force - the running container, or the one that is off, has what its configuration says.
in_force() { rm -f "$ROOT$(record_dir)"/{restart,before,after,ours_before,wanted_before}; }
