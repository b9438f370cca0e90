#!/usr/bin/env bash
# Who has a card open. NVIDIA's driver waits without end when it is to let go of a card that somebody has: so it is looked for first.
# Needs: common, handover/card, lines, nvidia
#
# Gives: find_holders NUMBER... -> HOLDERS, LOOK_FAILED; has_no_holders, sound_is_free -> REFUSED; find_card_numbers -> CARD_NUMBERS; find_group_nodes -> GROUP_NODES.

# find_card_numbers - sets CARD_NUMBERS: the device numbers (in hexadecimal, as `stat` has them) of what must not be open: the card's own node and nvidia-modeset, what is
# in /dev/dri and /dev/snd of it, and where the whole driver goes, its control nodes.
find_card_numbers() {
  local function path name numbers
  CARD_NUMBERS=()
  find_minor "$GPU"
  [[ -z $NUMBER ]] || add_number c3 "$NUMBER"
  add_number c3 254
  for function in "${FUNCTIONS[@]}"; do
    for path in "$PCI/$function"/drm/*/dev "$PCI/$function"/sound/*/dev "$PCI/$function"/sound/*/*/dev; do
      [[ -r $path ]] && read -r numbers <"$path" && printf -v name '%x' "${numbers%:*}" && add_number "$name" "${numbers#*:}"
    done
  done
  find_drm_names
  for name in $DRM_NAMES; do add_number e2 "$((10#${name//[!0-9]/}))"; done
  is_only || return 0
  add_number c3 255
  find_major nvidia-uvm
  [[ -n $NUMBER ]] || return 0
  printf -v name '%x' "$NUMBER"
  CARD_NUMBERS+=("$name:0" "$name:1")
}

# add_number MAJOR MINOR - the major in hexadecimal already.
add_number() {
  local minor
  printf -v minor '%x' "$2"
  CARD_NUMBERS+=("$1:$minor")
}

# find_group_nodes - sets GROUP_NODES: of the card's IOMMU groups below /dev/vfio: open while a VM has it.
find_group_nodes() {
  local function group node groups=() functions=("${FUNCTIONS[@]/#/$PCI/}")
  GROUP_NODES=()
  mapfile -t groups < <(readlink "${functions[@]/%//iommu_group}")
  for group in "${groups[@]}"; do add_group_node "$ROOT/dev/vfio/${group##*/}"; done
  for function in "${FUNCTIONS[@]}"; do
    [[ -L $PCI/$function/iommu_group ]] || continue
    for node in "$PCI/$function"/vfio-dev/*; do add_group_node "$ROOT/dev/vfio/devices/${node##*/}"; done
  done
}

add_group_node() { [[ ! -e $1 || " ${GROUP_NODES[*]} " == *" $1 "* ]] || GROUP_NODES+=("$1"); } # PATH

# find_holders CONTROL NUMBER... - sets HOLDERS: who has one of these open, or the card's memory mapped, in words. CONTROL is a node that the look has
# to see, or it counts for nothing. LOOK_FAILED, with status 1: why it can't be told, which is no "nobody". (What is in a container has paths of its
# own: numbers count. Threads are looked at: where the first one of a process has ended, or another one has open files of its own, the process shows
# nothing. Whoever ends meanwhile has let go. What lies on a storage that doesn't answer isn't asked of it: hence `--cached`.)
find_holders() {
  local control=$1 line path numbers wanted pid seen=no pids=()
  shift
  HOLDERS=() LOOK_FAILED='' wanted=" $* "
  # shellcheck disable=SC2016 # that bash's own
  look 'printf "%s\0" "$@" "$ROOT"/proc/[0-9]*/task/[0-9]*/fd | find -files0-from - -maxdepth 1 ! -lname "socket:*" ! -lname "pipe:*" ! -lname "anon_inode:*" -exec stat --cached=always -L -c "%t:%T %F %n" {} + |
    grep -ae " character special file " -e " $1\$"' "$control" || return 1
  while read -r numbers line; do
    [[ ! $numbers =~ ^[0-9a-f]+:[0-9a-f]+$ || $line != *" $control" ]] || seen=yes
    path=${line#character special file }
    [[ $wanted == *" $numbers "* && $path == "$ROOT"/proc/*/fd/* ]] || continue
    pid=${path#"$ROOT/proc/"} pid=${pid%%/*}
    pids[pid]=$pid
  done <"$RUN/handover.seen"
  [[ $seen == yes ]] || {
    LOOK_FAILED="the look at all processes has not shown $control, which is there"
    return 1
  }
  find_mapped_as
  # Threads have one memory: two of them are asked, since the first may have ended.
  # shellcheck disable=SC2016
  look 'for p in "$ROOT"/proc/[0-9]*; do t=("$p"/task/[0-9]*/maps) && printf "%s\0" "${t[0]}" "${t[-1]}"; done | xargs -0 -n 1000 grep -lE "$1" /dev/null' "$MAPPED_AS" || return 1
  while read -r path; do
    pid=${path#"$ROOT/proc/"} pid=${pid%%/*}
    pids[pid]=$pid
  done <"$RUN/handover.seen"
  rm -f "$RUN/handover.seen" "$RUN/handover.errors"
  for pid in "${pids[@]}"; do add_holder "$pid"; done
}

# has_no_holders - after that look: else status 1, and REFUSED names them.
has_no_holders() {
  ((${#HOLDERS[@]} > 0)) || return 0
  printf -v REFUSED '%s, ' "${HOLDERS[@]}"
  REFUSED="in use by ${REFUSED%, }"
  return 1
}

# sound_is_free - of a card whose driver is gone: nobody has its sound open. Status 1, with REFUSED and HOLDERS.
sound_is_free() {
  local function path sounds=() control='' line
  HOLDERS=()
  for function in "${FUNCTIONS[@]}"; do
    for path in "$PCI/$function"/sound/*/dev "$PCI/$function"/sound/*/*/dev; do
      [[ -r $path ]] || continue
      read -r line <"$path" || continue
      sounds+=("$(printf '%x:%x' "${line%:*}" "${line#*:}")")
      find_first "${path%/dev}/uevent" '^DEVNAME=(.+)$'
      [[ -z $FIRST || ! -e $ROOT/dev/$FIRST ]] || control=$ROOT/dev/$FIRST
    done
  done
  [[ -n $control ]] || return 0
  find_holders "$control" "${sounds[@]}" || { REFUSED="who has its sound open can't be told: $LOOK_FAILED" && return 1; }
  has_no_holders
}

# look PROGRAM ARGUMENT... - a look at /proc, whose findings are in $RUN/handover.seen. It has failed where something else is said than that processes
# are gone, or files on a storage that is: no device node answers like that; or where it ends badly without a word. (xargs: 123, where a grep found
# nothing.)
look() {
  local status=0 line said='' place="'?$ROOT/proc/[][0-9*-]+/task/[][0-9*-]+/(fd|maps)(/[0-9]+)?'?"
  local refused="^stat: (cannot statx? )?'?$ROOT/proc/[0-9]+/task/[0-9]+/fd/[0-9]+'?: Permission denied\$"
  local gone="^(find|stat|grep): (cannot statx? )?$place: (No such file or directory|No such process|Stale file handle|Transport endpoint is not connected|Input/output error)\$"
  : >"$RUN/handover.errors"
  bounded 60 bash -c "set -o pipefail; { $1; } >\"\$0.seen\" 2>\"\$0.errors\"" "$RUN/handover" "${@:2}" || status=$?
  # "Permission denied" answers a FUSE file system that is its user's alone, where nodes aren't allowed; of a process itself root is denied nothing.
  [[ ! -s $RUN/handover.errors ]] || while IFS= read -r line || [[ -n $line ]]; do
    [[ $line =~ $refused || $line =~ $gone ]] || { said=$line && break; }
  done <"$RUN/handover.errors"
  [[ -z $said ]] && { ((status <= 1 || status == 123)) || [[ $status == 2 && -s $RUN/handover.errors ]]; } && return 0
  LOOK_FAILED="the look at all processes failed: ${said:-status $status}"
  return 1
}

# find_mapped_as - sets MAPPED_AS: as its memory stands in /proc/PID/maps: a process may have closed the node.
find_mapped_as() {
  local names name
  find_minor "$GPU"
  names="nvidia$NUMBER|nvidia-modeset"
  find_drm_names
  for name in $DRM_NAMES; do names+="|dri/$name"; done
  ! is_only || names+='|nvidiactl|nvidia-uvm'
  MAPPED_AS=" /dev/($names)( \\(deleted\\))?\$"
}

add_holder() { # PID
  local name='' group about=''
  { IFS= read -rd '' name <"$ROOT/proc/$1/comm"; } 2>/dev/null || :
  name=${name//$'\n'/}
  read_lines "$ROOT/proc/$1/cgroup"
  group=${READ_LINES[*]: -1}
  if [[ $group =~ /lxc(\.payload)?[./]([0-9]+) ]]; then
    about=" of container ${BASH_REMATCH[2]}"
  elif [[ $group =~ /([^/]+\.(service|scope))($|/) ]]; then
    about=" of ${BASH_REMATCH[1]}"
  fi
  HOLDERS+=("${name:-?} (PID $1$about)")
}
