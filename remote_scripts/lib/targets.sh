#!/usr/bin/env bash
# Which other node a VM is to run on for a while, and what that node lacks for it: what Proxmox VE finds only while it migrates (a bridge, the hookscript, a QEMU that is new enough).
# Needs: pve, maintenance
#
# Gives: find_target VMID BYTES MACHINE ROOMS NOT -> NODE, LACKING, DOUBT; rooms_without ROOMS NODE BYTES. Takes, of lib/migrate.sh: api_says, ALLOWED.
#
# A node is ruled out only by what Proxmox VE would refuse. Where that can't be told, it comes after the others, and it is said why: Proxmox VE looks itself, and leaves the VM as it was if it can't.
# A node that doesn't answer at all takes none, as nobody could tell how the VM has arrived there. Nor is a VM shut down for that.
# Of each node, what it said; `?` for no answer. Emptied by whoever wants it to be asked anew.
declare -A SAID_BY=()
# What a node keeps for itself, in bytes.
SPARE_BYTES=1073741824

# roomiest ROOMS BYTES NOT - of the nodes in ALLOWED, and not in NOT (`,pve2,`), the one with the most memory left, which has so much and SPARE_BYTES; of equals the first by its name.
roomiest() {
  local node room best='' most=$(($2 + SPARE_BYTES - 1))
  while read -r node room; do
    [[ -n $node && $3 != *",$node,"* && ($ALLOWED == '*' || ",$ALLOWED," == *",$node,"*) ]] || continue
    ((room <= most)) || best=$node most=$room
  done <<<"$1"
  printf '%s' "$best"
}

# rooms_without ROOMS NODE BYTES - ROOMS once so much of NODE's is taken.
rooms_without() {
  local node room
  while read -r node room; do
    [[ $node != "$2" ]] || room=$((room - $3))
    printf '%s %s\n' "$node" "$room"
  done <<<"$1"
}

# find_target VMID BYTES MACHINE ROOMS NOT - of the nodes that `roomiest` knows, the first one that has all that the VM needs. Sets NODE: empty, if there is none; LACKING: what
# each lacks that was passed over; DOUBT: what can't be told of NODE. Status 1: none but SILENT is left, which doesn't answer.
find_target() {
  local node not=$5 doubtful='' why='' lacks
  NODE='' LACKING='' DOUBT='' SILENT=''
  while node=$(roomiest "$4" "$2" "$not") && [[ -n $node ]]; do
    lacks='' DOUBT=''
    if ! what_it_lacks "$node" "$1" "$3"; then
      SILENT=${SILENT:-$node}
    elif [[ -n $lacks ]]; then
      LACKING+="; $node $lacks"
    elif [[ -n $DOUBT ]]; then
      [[ -n $doubtful ]] || doubtful=$node why=$DOUBT
    else
      NODE=$node
      return
    fi
    not+=",$node,"
  done
  NODE=$doubtful DOUBT=$why
  [[ -n $NODE || -z $SILENT ]]
}

# what_it_lacks NODE VMID MACHINE - sets `lacks` of the caller: why a VM of this node can't run on that one, in words; else DOUBT: why that can't be told. A VM whose machine isn't
# known (MACHINE: -) isn't kept by it. Status 1: NODE doesn't answer. (It is asked for its version first, so that it isn't waited for again and again.)
what_it_lacks() {
  local text line name here release bridge='^net[0-9]+: *(.*,)?bridge=([^,]+)' hookscript='^hookscript: *([^ ]+) *$'
  find_node_name
  here=$NODE_NAME
  said_by version "$1" || return 1
  release=$SAID
  if ! said_by version "$here"; then
    DOUBT="has Proxmox VE $release, and this node doesn't say its own"
  elif [[ $SAID != "$release" ]]; then
    DOUBT="has Proxmox VE $release, and this node $SAID: Proxmox VE doesn't guarantee the way to the older one"
  fi
  if [[ $3 != - ]]; then
    if ! said_by machine "$1"; then
      DOUBT="doesn't say which machines its QEMU knows"
    elif is_older "$SAID" "$3"; then
      lacks="has QEMU $SAID, and the VM runs on a machine of $3"
      return
    fi
  fi
  text=$(of_now "/etc/pve/qemu-server/$2.conf")
  name=''
  while IFS= read -r line; do
    [[ ! $line =~ $hookscript ]] || name=${BASH_REMATCH[1]}
    [[ ! $line =~ $bridge ]] || is_in "bridge ${BASH_REMATCH[2]}" bridges "$1" "$here" "${BASH_REMATCH[2]}" || return 0
  done <<<"$text"
  [[ -z $name ]] || is_in "$name, its hookscript" "snippets ${name%%:*}" "$1" "$here" "$name" || return 0
}

# is_in WORDS LIST NODE HERE NAME - status 1: NODE doesn't have it, and this node does. What neither lists may be there all the same: a bridge that another file than
# /etc/network/interfaces defines, a script on a storage that is no longer for snippets.
is_in() {
  local there
  said_by "$2" "$3" || :
  there=$SAID
  [[ $there != *$'\n'"$5"$'\n'* ]] || return 0
  if [[ $there != '?' ]] && said_by "$2" "$4" && [[ $SAID == *$'\n'"$5"$'\n'* ]]; then
    lacks="doesn't have $1"
    return 1
  fi
  DOUBT="doesn't say whether it has $1"
}

# said_by WHAT NODE - sets SAID. Status 1: no answer, or none that makes sense.
said_by() {
  local what="$1 $2" path program key='' text
  if [[ -z ${SAID_BY[$what]:-} ]]; then
    # shellcheck disable=SC2016 # Perl's variables
    case $1 in
      version) path=version program='$said->{version} =~ /^(\d+\.\d+)/ or die; print $1' ;;
      machine) # the newest
        path=capabilities/qemu/machines program='
          my @known = sort { $a->[0] <=> $b->[0] || $a->[1] <=> $b->[1] } map { $_->{id} =~ /-(\d+)\.(\d+)/ ? [$1, $2] : () } @$said;
          @known or die; printf "%s.%s", @{ $known[-1] }'
        ;;
      bridges) path='network --type any_bridge' key=iface ;;
      snippets\ *) path="storage/${1#* }/content --content snippets" key=volid ;;
    esac
    # shellcheck disable=SC2016 # Perl's variables
    [[ -z $key ]] || program='ref $said eq "ARRAY" or die; my @names = map { ref eq "HASH" && $_->{'$key'} || die } @$said; print map({ "$_\n" } "", @names), "."'
    SAID_BY[$what]='?'
    # A name with a glob or a blank in it isn't one of a storage, and isn't asked for.
    [[ $path =~ ^[A-Za-z0-9._/-]+(\ --[a-z]+\ [a-z_]+)?$ ]] && text=$(api_says "/nodes/$2/$path" "$program") && [[ -n $text ]] && SAID_BY[$what]=$text
  fi
  SAID=${SAID_BY[$what]}
  [[ $SAID != '?' ]]
}

# is_older ONE OTHER - two versions, such as 9.1 and 10.0.
is_older() {
  local one=$((10#${1%%.*})) other=$((10#${2%%.*}))
  ((one < other || (one == other && 10#${1#*.} < 10#${2#*.})))
}
