#!/usr/bin/env bash
# Reads what a diagnosis needs besides read_host.sh: device nodes, NVIDIA's driver, containers' configurations and insides. Changes
# nothing, and therefore runs no nvidia-smi: as root it loads modules and makes nodes.
# Needs: files, guests, lines, nvidia, read/text, container/device_lines
#
# Arguments: IDS (containers to look into, separated by spaces; those that aren't here are left out), INSIDE (the script that runs in
#   them).
# Output: one JSON object; homelab/doctor/reading.py models it. Texts of commands are passed on as they are and parsed there.
# Verbs: diagnose.

# How long a container may take to be looked into, in seconds: a hung one must not hide what is known without it. Opening a card that
# nobody uses takes its driver a second or two.
PATIENCE=25

diagnose() {
  local id separator=
  printf '{"node":'
  json_string "$(hostname)"
  printf ',"guests":['
  known_guests
  printf '],"driver":'
  find_loaded
  json_string "$LOADED"
  printf ',"char_devices":'
  string_of /proc/devices
  json_entry nodes "$(nodes)"
  json_entry links "$(find "$ROOT/dev/dri/by-path" -type l -printf '%f %l\n' 2>/dev/null)"
  printf ',"containers":['
  for id in $IDS; do
    [[ -r $ROOT/etc/pve/lxc/$id.conf ]] || continue
    printf '%s' "$separator"
    container "$id"
    separator=,
  done
  printf ']}\n'
}

# Every guest of the cluster: a wrong id is answered by what it is. By bash itself: there may be hundreds.
known_guests() {
  local path node kind id separator=
  for path in "$ROOT"/etc/pve/nodes/*/{lxc,qemu-server}/*.conf; do
    [[ $path =~ /nodes/([^/]+)/(lxc|qemu-server)/([0-9]+)\.conf$ && -e $path ]] || continue
    node=${BASH_REMATCH[1]} id=${BASH_REMATCH[3]} kind=vm
    [[ ${BASH_REMATCH[2]} != lxc ]] || kind=lxc
    printf '%s{"id":%s,"kind":"%s","node":' "$separator" "$id" "$kind"
    json_string "$node"
    find_pending "$path"
    json_entry pending "$PENDING"
    printf '}'
    separator=,
  done
}

# find_pending FILE - sets PENDING: what a VM gets at its next start; a container's is passed on with its configuration.
find_pending() {
  local line lines=() within_it=no
  PENDING=''
  { mapfile -t lines <"$1"; } 2>/dev/null || : # gone meanwhile
  for line in "${lines[@]}"; do
    if [[ $within_it == no ]]; then
      [[ $line != '[PENDING]'* ]] || within_it=yes
    elif [[ $line == '['* ]]; then
      within_it=no
    elif [[ $line =~ ^(hostpci[0-9]+|machine|delete): ]]; then
      PENDING+=${PENDING:+$'\n'}$line
    fi
  done
}

# The nodes that graphics cards have: path, major, minor (hexadecimal), mode, owner, group, kind.
nodes() {
  local line
  while IFS= read -r line; do
    printf '%s\n' "${line#"$ROOT"}"
  done < <(stat -c '%n %t %T %a %u %g %F' "$ROOT"/dev/nvidia* "$ROOT"/dev/nvidia-caps/* "$ROOT"/dev/dri/* "$ROOT"/dev/kfd 2>/dev/null)
}

container() { # ID
  local conf=$ROOT/etc/pve/lxc/$1.conf running=false found='' problem=''
  find_power pct "$1"
  [[ $POWER_NOW != unknown ]] || running=null
  if [[ $POWER_NOW == on ]]; then
    running=true
    answer_of "$PATIENCE" 1048576 pct exec "$1" -- sh -c "$INSIDE" 2>&1 || problem="exit status $?: $(tail -n 3 <<<"$ANSWER")"
    found=$ANSWER
  fi
  printf '{"id":%s,"conf":' "$1"
  json_string "$(device_lines "$conf")"
  printf ',"other_keys":'
  other_keys "$conf"
  printf ',"running":%s' "$running"
  json_entry inside "$found"
  json_entry problem "$problem"
  printf '}'
}

# Raw keys that can give a container devices in ways that aren't judged here; their values stay where they are.
other_keys() { # PATH
  local line lines=() keys=()
  { mapfile -t lines <"$1"; } 2>/dev/null || : # gone meanwhile
  for line in "${lines[@]}"; do
    [[ $line != '['* ]] || break
    [[ ! $line =~ ^lxc\.(include|hook\.[a-z-]+|environment|cap\.[a-z]+|autodev|apparmor\.profile) ]] || keys+=("${BASH_REMATCH[0]}")
  done
  put_in_order "${keys[@]}"
  json_list "${IN_ORDER[@]}"
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
