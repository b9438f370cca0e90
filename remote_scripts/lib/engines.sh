#!/usr/bin/env bash
# The configuration of container engines: what nvidia-ctk puts in, and how that is taken out again.
#
# nvidia-ctk writes an engine's configuration anew, with all that somebody had in it. What was there before is kept (STATE/kept), what it
# became is noted (STATE/files/toolkit, `pending` while it is being changed). As long as nobody changes it, the kept bytes are given back;
# else our runtime is taken out of docker's daemon.json, our drop-in of containerd goes, and its own config.toml stays as it is.
# Needs: files, engines/without_ours
#
# Gives: config_files ENGINE; config_state PATH; begin_change PATH, end_change PATH, give_back_config PATH -> CONFIG_CHANGED.

# config_files ENGINE
config_files() {
  case $1 in
    docker) printf '%s\n' /etc/docker/daemon.json ;;
    containerd) printf '%s\n' /etc/containerd/conf.d/99-nvidia.toml /etc/containerd/config.toml ;;
  esac
}

record_file() { printf '/var/lib/homelab/files/toolkit%s' "$1"; }
kept_file() { printf '/var/lib/homelab/kept%s' "$1"; }

# config_state PATH - absent (not ours), pending (a run was killed), ok, changed (by somebody, since), missing.
config_state() {
  local record
  record=$ROOT$(record_file "$1")
  if [[ ! -e $record ]]; then
    printf absent
  elif [[ $(<"$record") == pending ]]; then
    printf pending
  else
    file_state toolkit "$1"
  fi
}

sum_file() { printf '/var/lib/homelab/sums%s' "$1"; }

# begin_change PATH - before nvidia-ctk writes to it.
begin_change() {
  local path=$1 record
  record=$(record_file "$path")
  remember "$(kept_file "$path")" "$(sum_file "$path")" "$record" "$path"
  case $(config_state "$path") in
    absent)
      if is_there "$path"; then keep_file "$path"; else forget_kept "$path"; fi
      need_dir "$ROOT${record%/*}"
      write_atomically "$record" 0600 printf 'pending\n'
      ;;
    changed) keep_without_ours "$path" ;; # what is to be given back has changed as well
  esac
  make_dir "${path%/*}"
  remove_file "$(before_file "$path")"
  [[ ! -e $ROOT$path ]] || copy_atomically "$ROOT$path" "$(before_file "$path")"
}
before_file() { printf '/run/homelab/before%s' "$1"; }

# end_change PATH - after it: sets CONFIG_CHANGED where that means something else now; the bytes stay as they were where it doesn't.
end_change() {
  local path=$1 before sum
  before=$ROOT$(before_file "$path")
  if same_meaning "$path" "$before"; then
    [[ ! -e $before ]] || cmp -s "$before" "$ROOT$path" || copy_atomically "$before" "$path"
    # Somebody had it so before us: then it isn't ours.
    if [[ $(config_state "$path") == pending ]] && same_meaning "$path" "$ROOT$(kept_file "$path")"; then
      remove_file "$(record_file "$path")" "$(before_file "$path")"
      forget_kept "$path"
      return
    fi
  else
    CONFIG_CHANGED=yes
    log "wrote $path"
  fi
  remove_file "$(before_file "$path")"
  [[ -e $ROOT$path ]] || { remove_file "$(record_file "$path")" && return; }
  sum=$(sha256sum <"$ROOT$path")
  write_atomically "$(record_file "$path")" 0600 printf '%s %s\n' "$(stat -c %a "$ROOT$path")" "${sum%% *}"
}

# same_meaning PATH FILE - FILE is taken as it is, without ROOT.
same_meaning() {
  [[ -e $ROOT$1 && -e $2 ]] || { [[ ! -e $ROOT$1 && ! -e $2 ]] && return; }
  cmp -s "$ROOT$1" "$2" && return
  [[ $1 == *.json && $(json_edit canonical "$ROOT$1") == "$(json_edit canonical "$2")" ]]
}

# keep_without_ours PATH - what is to be given back: the file as it is now, without what is ours; nothing where that is nothing.
keep_without_ours() {
  local path=$1 kept text
  kept=$(kept_file "$path")
  text=$(without_ours "$path")
  if [[ -z ${text//[[:space:]\{\}]/} && ! -e $ROOT$kept ]]; then
    forget_kept "$path"
  else
    need_dir "$ROOT${kept%/*}"
    remove_file "$(sum_file "$path")" # without one it counts as whole
    write_atomically "$kept" "0$(stat -c %a "$ROOT$path")" printf '%s\n' "$text"
    note_kept "$path"
  fi
}

# give_back_config PATH - sets CONFIG_CHANGED where there was something of ours.
give_back_config() {
  local path=$1 state
  state=$(config_state "$path")
  [[ $state != absent ]] || return 0
  need_kept "$path"
  remember "$path" "$(record_file "$path")" "$(sum_file "$path")" "$(kept_file "$path")"
  [[ $state != changed ]] || keep_without_ours "$path"
  # Somebody may have removed it since; so it stays.
  [[ $state == missing ]] || put_kept_back "$path"
  remove_file "$(record_file "$path")"
  forget_kept "$path"
  CONFIG_CHANGED=yes
  log "gave back $path"
}
