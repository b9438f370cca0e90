#!/usr/bin/env bash
# Reads what a diagnosis needs besides read_host.sh: device nodes, NVIDIA's driver, containers' configurations and insides. Changes
# nothing, and therefore runs no nvidia-smi: as root it loads modules and makes nodes.
# Needs: files, read/text, container/device_lines
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
  printf '{"node":%s,"guests":[' "$(json_string "$(hostname)")"
  known_guests
  printf '],"driver":%s,"char_devices":%s' "$(string_of /sys/module/nvidia/version)" "$(string_of /proc/devices)"
  printf ',"nodes":%s,"links":%s' "$(json_string "$(nodes)")" "$(json_string "$(find "$ROOT/dev/dri/by-path" -type l -printf '%f %l\n' 2>/dev/null)")"
  printf ',"containers":['
  for id in $IDS; do
    [[ -r $ROOT/etc/pve/lxc/$id.conf ]] || continue
    printf '%s' "$separator"
    container "$id"
    separator=,
  done
  printf ']}\n'
}

# Every guest of the cluster: a wrong id is answered by what it is.
known_guests() {
  local path node kind pending separator=
  for path in "$ROOT"/etc/pve/nodes/*/{lxc,qemu-server}/*.conf; do
    [[ $path =~ /nodes/([^/]+)/(lxc|qemu-server)/([0-9]+)\.conf$ && -e $path ]] || continue
    node=${BASH_REMATCH[1]} kind=vm
    [[ ${BASH_REMATCH[2]} != lxc ]] || kind=lxc
    # What a VM gets at its next start; a container's is passed on with its configuration.
    pending=$(sed -n '/^\[PENDING\]/,/^\[/p' "$path" | grep -E '^(hostpci[0-9]+|machine|delete):') || :
    printf '%s{"id":%s,"kind":"%s","node":%s,"pending":%s}' "$separator" "$(basename "$path" .conf)" "$kind" "$(json_string "$node")" \
      "$(json_string "$pending")"
    separator=,
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
  if [[ $(exec_within "$ASK_SECONDS" pct status "$1" 2>/dev/null) == *running* ]]; then
    running=true
    answer_of "$PATIENCE" 1048576 pct exec "$1" -- sh -c "$INSIDE" 2>&1 || problem="exit status $?: $(tail -n 3 <<<"$ANSWER")"
    found=$ANSWER
  fi
  printf '{"id":%s,"conf":%s,"other_keys":%s,"running":%s,"inside":%s,"problem":%s}' "$1" \
    "$(json_string "$(device_lines "$conf")")" \
    "$(other_keys "$conf")" "$running" "$(json_string "$found")" "$(json_string "$problem")"
}

# Raw keys that can give a container devices in ways that aren't judged here; their values stay where they are.
other_keys() { # PATH
  local keys
  mapfile -t keys < <(sed '/^\[/,$d' "$1" | grep -oE '^lxc\.(include|hook\.[a-z-]+|environment|cap\.[a-z]+|autodev|apparmor\.profile)' | sort -u)
  json_list "${keys[@]}"
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
