#!/usr/bin/env bash
# The nodes of Intel's and AMD's cards: cardN and renderDN in /dev/dri, AMD's /dev/kfd. Their numbers are given out anew at each boot, in the
# order in which the drivers come; a card is known by its PCI address, and its nodes by what the kernel says of it now. Links such as
# /dev/dri/by-path/... are of no use: a container would get a node of that name, and programs look for renderDN.
# Needs: common, container/conf, container/record
#
# Gives: find_card_nodes -> CARD_NODES, UNKNOWN_NODES, GROUP_OF, CARD_OF; drm_node ADDRESS PREFIX -> NODE; find_groups, noted_groups -> GROUP_IDS;
#   node_options PATH -> OPTIONS; unmount_left. Variables: CTID, CARDS (ADDRESS=KIND,... separated by spaces; a kind is render,
#   card or kfd), METHOD, LOOK_INSIDE (no: groups as they were noted).

# What is read of a container's groups, in bytes; the rest is left out.
GROUP_BYTES=65536

# find_card_nodes - sets CARD_NODES: paths; UNKNOWN_NODES: what the kernel doesn't show; GROUP_OF: path -> the group that such a node is for;
# CARD_OF: path -> the address of the card whose node it is.
find_card_nodes() {
  local word address kind
  declare -ga CARD_NODES=() UNKNOWN_NODES=()
  declare -gA GROUP_OF=() CARD_OF=()
  for word in $CARDS; do
    address=${word%%=*}
    word=${word#*=}
    for kind in ${word//,/ }; do
      case $kind in
        render) drm_node "$address" renderD && add_card_node "/dev/dri/$NODE" render "$address" ;;
        card) drm_node "$address" card && add_card_node "/dev/dri/$NODE" video "$address" ;;
        *) add_card_node /dev/kfd render ;;
      esac || UNKNOWN_NODES+=("the $kind node of $address")
    done
  done
}

add_card_node() { # PATH GROUP [ADDRESS]
  [[ -n ${GROUP_OF[$1]:-} ]] || CARD_NODES+=("$1")
  GROUP_OF[$1]=$2
  [[ -z ${3:-} ]] || CARD_OF[$1]=$3
}

# drm_node ADDRESS PREFIX - sets NODE: the name, such as renderD128; status 1: the card has none.
drm_node() {
  local path
  for path in "$ROOT/sys/bus/pci/devices/$1/drm/$2"[0-9]*; do
    NODE=${path##*/}
    [[ ! $NODE =~ ^(card|renderD)[0-9]{1,4}$ ]] || return 0
  done
  NODE=''
  return 1
}

# -- groups, as they are inside --------------------------------------------------------------------------------
# A dev[n] entry's gid is one of the container's. The host's number means another group there, or none (ADR 23).

# find_groups - sets GROUP_IDS: render, video -> its number inside; a group that isn't there has none.
find_groups() {
  local text=''
  noted_groups
  [[ -n $CARDS && $METHOD == device && ${LOOK_INSIDE:-yes} == yes ]] || return 0
  read_conf
  if is_up; then
    answer_of 60 "$GROUP_BYTES" pct exec "$CTID" -- sh -c 'echo "#"; getent group render video || { cd /etc && cat group; }' 2>/dev/null </dev/null || :
    text=$ANSWER
    [[ -n $text ]] || die "to know the groups render and video of container $CTID" "\`pct exec $CTID\` said nothing" \
      "a card's nodes are for the members of these groups; its configuration is unchanged" "try \`pct enter $CTID\`, then run \`pulumi up\` again"
  elif [[ -n $(noted_line 4 wanted) ]]; then
    return 0 # it has been looked into
  elif [[ -z $LOCKED && $TEMPLATE == no ]]; then
    text=$(groups_while_off | tr -d '\0') || text=''
    [[ -n $text ]] || log "note: the groups of container $CTID, which is off, can't be read: its nodes are for everybody in it"
  fi
  take_groups "$text"
}

take_groups() { # TEXT - lines of a group file; it is the container's own, and may say anything
  local name id rest
  GROUP_IDS=()
  while IFS=: read -r name _ id rest; do
    [[ ($name == render || $name == video) && -z ${GROUP_IDS[$name]:-} && $id =~ ^0*([0-9]{1,5})$ ]] || continue
    id=${BASH_REMATCH[1]}
    if ((id > 0 && id < 65535)) && is_mapped_group "$id"; then GROUP_IDS[$name]=$id; fi
  done <<<"$1"
}

# is_mapped_group ID - has that group of the container a number on the host? Proxmox VE doesn't start a container with one that hasn't.
is_mapped_group() {
  local index kind inside count ranges=0
  for index in "${!LXC_KEY[@]}"; do
    [[ ${LXC_KEY[index]} == lxc.idmap ]] || continue
    read -r kind inside _ count _ <<<"${LXC_VALUE[index]}"
    [[ $kind == [gb] && $inside =~ ^[0-9]{1,10}$ && $count =~ ^[0-9]{1,10}$ ]] || continue
    ranges=$((ranges + 1))
    ((10#$inside > $1 || $1 >= 10#$inside + 10#$count)) || return 0
  done
  ((ranges == 0))
}

# groups_while_off - the group file of a container that is off. Its file system is its root's: nothing in it is followed, and what isn't a
# plain file isn't read.
groups_while_off() {
  local folder
  note mounted :
  folder=$ROOT/var/lib/lxc/$CTID/rootfs
  if within 60 pct mount "$CTID" </dev/null >/dev/null 2>&1; then (
    folder=$(cd -P "$folder" && pwd -P) && cd -P "$folder/etc" 2>/dev/null && [[ $(pwd -P) == "$folder/etc" && -f group && ! -L group ]] &&
      within 20 dd if=group iflag=nofollow,nonblock,count_bytes count="$GROUP_BYTES" status=none 2>/dev/null
  ) || :; fi
  unmount_left
}

# unmount_left - what a look into a container that is off has left mounted, maybe by a run that was cut short.
unmount_left() {
  [[ -e $ROOT$RECORDS/$CTID/mounted ]] || return 0
  if grep -qsxE 'lock:[[:space:]]*mounted' "$ROOT$PVE_LXC/$CTID.conf"; then
    within 60 pct unmount "$CTID" </dev/null >/dev/null 2>&1 || log "pct unmount $CTID failed"
  fi
  remove_file "$RECORDS/$CTID/mounted"
  rmdir "$ROOT$RECORDS/$CTID" 2>/dev/null || :
}

# noted_groups - sets GROUP_IDS as a run has noted them.
noted_groups() {
  local word
  declare -gA GROUP_IDS=()
  [[ -n $CARDS ]] || return 0
  for word in $(noted_line 5 wanted); do
    [[ ! $word =~ ^(render|video)=([0-9]{1,5})$ ]] || GROUP_IDS[${BASH_REMATCH[1]}]=${BASH_REMATCH[2]}
  done
}

# node_options PATH - sets OPTIONS of a dev[n] entry: for the group's members; without that group, a node for computing is for everybody, as
# udev makes it where a distribution doesn't say otherwise, and one that sets the screen is root's.
node_options() {
  local group=${GROUP_OF[$1]} id
  id=${GROUP_IDS[$group]:-}
  OPTIONS=mode=0666
  if [[ -n $id ]]; then
    OPTIONS=gid=$id,mode=0660
  elif [[ $group == video ]]; then
    OPTIONS=mode=0660
  fi
}
