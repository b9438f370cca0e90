#!/usr/bin/env bash
# Who has a card open. NVIDIA's driver waits without end when it is to let go of a card that somebody has: so it is looked for first.
# Needs: common, handover/card
#
# Gives: find_holders NUMBER... -> HOLDERS, LOOK_FAILED; has_no_holders -> REFUSED; card_numbers, group_nodes.

# card_numbers - the device numbers (in hexadecimal, as `stat` has them) of what must not be open: the card's own node and nvidia-modeset, what is
# in /dev/dri and /dev/snd of it, and where the whole driver goes, its control nodes.
card_numbers() {
  local minor function path name numbers
  minor=$(nvidia_minor "$GPU")
  [[ -z $minor ]] || printf 'c3:%x ' "$minor"
  printf 'c3:fe '
  for function in "${FUNCTIONS[@]}"; do
    for path in "$PCI/$function"/drm/*/dev "$PCI/$function"/sound/*/dev "$PCI/$function"/sound/*/*/dev; do
      [[ -r $path ]] && read -r numbers <"$path" && printf '%x:%x ' "${numbers%:*}" "${numbers#*:}"
    done
  done
  for name in $(drm_names); do printf 'e2:%x ' "$((10#${name//[!0-9]/}))"; done
  is_only || return 0
  printf 'c3:ff '
  name=$(nvidia_major nvidia-uvm)
  [[ -z $name ]] || printf '%x:0 %x:1 ' "$name" "$name"
}

# group_nodes - of the card's IOMMU groups below /dev/vfio: open while a VM has it.
group_nodes() {
  local function group node
  for function in "${FUNCTIONS[@]}"; do
    group=$(readlink "$PCI/$function/iommu_group") || continue
    printf '%s\n' "$ROOT/dev/vfio/${group##*/}"
    for node in "$PCI/$function"/vfio-dev/*; do printf '%s\n' "$ROOT/dev/vfio/devices/${node##*/}"; done
  done | sort -u | while IFS= read -r node; do [[ ! -e $node ]] || printf '%s\n' "$node"; done
}

# find_holders CONTROL NUMBER... - sets HOLDERS: who has one of these open, or the card's memory mapped, in words. CONTROL is a node that the look has
# to see, or it counts for nothing. LOOK_FAILED, with status 1: why it can't be told, which is no "nobody". (What is in a container has paths of its
# own: numbers count. Threads are looked at: where the first one of a process has ended, or another one has open files of its own, the process shows
# nothing. Whoever ends meanwhile has let go. What lies on a storage that doesn't answer isn't asked of it: hence `--cached`.)
find_holders() {
  local control=$1 line path numbers wanted pid pids=''
  shift
  HOLDERS=() LOOK_FAILED='' wanted=" $* "
  # shellcheck disable=SC2016 # that bash's own
  look 'printf "%s\0" "$@" "$ROOT"/proc/[0-9]*/task/[0-9]*/fd | find -files0-from - -maxdepth 1 ! -lname "socket:*" ! -lname "pipe:*" ! -lname "anon_inode:*" -exec stat --cached=always -L -c "%t:%T %F %n" {} + |
    grep -ae " character special file " -e " $1\$"' "$control" || return 1
  grep -qE "^[0-9a-f]+:[0-9a-f]+ .* $control\$" "$RUN/handover.seen" || {
    LOOK_FAILED="the look at all processes has not shown $control, which is there"
    return 1
  }
  while read -r numbers line; do
    path=${line#character special file }
    [[ $wanted == *" $numbers "* && $path == "$ROOT"/proc/*/fd/* ]] || continue
    pid=${path#"$ROOT/proc/"}
    pids+=" ${pid%%/*}"
  done <"$RUN/handover.seen"
  # Threads have one memory: two of them are asked, since the first may have ended.
  # shellcheck disable=SC2016
  look 'for p in "$ROOT"/proc/[0-9]*; do t=("$p"/task/[0-9]*/maps) && printf "%s\0" "${t[0]}" "${t[-1]}"; done | xargs -0 -n 1000 grep -lE "$1" /dev/null' "$(mapped_as)" || return 1
  while read -r path; do
    path=${path#"$ROOT/proc/"}
    pids+=" ${path%%/*}"
  done <"$RUN/handover.seen"
  rm -f "$RUN/handover.seen" "$RUN/handover.errors"
  [[ -z $pids ]] || for pid in $(tr ' ' '\n' <<<"$pids" | sort -nu); do HOLDERS+=("$(holder_named "$pid")"); done
}

# has_no_holders - after that look: else status 1, and REFUSED names them.
has_no_holders() {
  ((${#HOLDERS[@]} > 0)) || return 0
  printf -v REFUSED '%s, ' "${HOLDERS[@]}"
  REFUSED="in use by ${REFUSED%, }"
  return 1
}

# look PROGRAM ARGUMENT... - a look at /proc, whose findings are in $RUN/handover.seen. It has failed where something else is said than that processes
# are gone, or files on a storage that is: no device node answers like that; or where it ends badly without a word. (xargs: 123, where a grep found
# nothing.)
look() {
  local status=0 said=''
  : >"$RUN/handover.errors"
  bounded 60 bash -c "set -o pipefail; { $1; } >\"\$0.seen\" 2>\"\$0.errors\"" "$RUN/handover" "${@:2}" || status=$?
  # "Permission denied" answers a FUSE file system that is its user's alone, where nodes aren't allowed; of a process itself root is denied nothing.
  [[ ! -s $RUN/handover.errors ]] || said=$(grep -avE "^stat: (cannot statx? )?'?$ROOT/proc/[0-9]+/task/[0-9]+/fd/[0-9]+'?: Permission denied\$" "$RUN/handover.errors" | grep -avE "^(find|stat|grep): (cannot statx? )?'?$ROOT/proc/[][0-9*-]+/task/[][0-9*-]+/(fd|maps)(/[0-9]+)?'?: (No such file or directory|No such process|Stale file handle|Transport endpoint is not connected|Input/output error)\$" | head -n 1)
  [[ -z $said ]] && { ((status <= 1 || status == 123)) || [[ $status == 2 && -s $RUN/handover.errors ]]; } && return 0
  LOOK_FAILED="the look at all processes failed: ${said:-status $status}"
  return 1
}

# mapped_as - as its memory stands in /proc/PID/maps: a process may have closed the node.
mapped_as() {
  local names name
  names="nvidia$(nvidia_minor "$GPU")|nvidia-modeset"
  for name in $(drm_names); do names+="|dri/$name"; done
  ! is_only || names+='|nvidiactl|nvidia-uvm'
  printf ' /dev/(%s)( \\(deleted\\))?$' "$names"
}

holder_named() { # PID
  local name group about=''
  name=$(tr -d '\0\n' <"$ROOT/proc/$1/comm" 2>/dev/null) || name='?'
  group=$(tail -n 1 "$ROOT/proc/$1/cgroup" 2>/dev/null) || group=''
  if [[ $group =~ /lxc(\.payload)?[./]([0-9]+) ]]; then
    about=" of container ${BASH_REMATCH[2]}"
  elif [[ $group =~ /([^/]+\.(service|scope))($|/) ]]; then
    about=" of ${BASH_REMATCH[1]}"
  fi
  printf '%s (PID %s%s)' "${name:-?}" "$1" "$about"
}
