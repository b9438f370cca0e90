#!/usr/bin/env bash
# The nodes of Intel's and AMD's cards: cardN and renderDN in /dev/dri, AMD's /dev/kfd. Their numbers are given out anew at each boot, in the
# order in which the drivers come; a card is known by its PCI address, and its nodes by what the kernel says of it now. Links such as
# /dev/dri/by-path/... are of no use: a container would get a node of that name, and programs look for renderDN.
# Needs: common, container/conf, container/record
#
# Gives: find_card_nodes -> CARD_NODES, UNKNOWN_NODES, GROUP_OF, CARD_OF; drm_node ADDRESS PREFIX -> NODE; noted_groups -> GROUP_IDS;
#   node_options PATH -> OPTIONS. Variables: CTID, CARDS (ADDRESS=KIND,... separated by spaces; a kind is render, card or kfd).

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
