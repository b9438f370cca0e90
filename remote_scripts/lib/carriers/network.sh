#!/usr/bin/env bash
# Down from addresses and interfaces to PCI functions, through bridges, bonds, VLANs and Open vSwitch.
# Needs: carriers/found, lines, links, read/text, switch/reached
#
# Gives: vital_network; network_carriers [ADDRESS...], every_network, interface_carriers NAME -> CARRIERS, TROUBLE; addresses_in TEXT.
#   Takes vital_entry of carriers.sh.

vital_network() {
  local names
  network_carriers
  printf -v names '%s, ' "${REACHED[@]}"
  names=${names%, }
  ((${#CARRIERS[@]})) || [[ -n $TROUBLE ]] || TROUBLE="no network card is known behind $names"
  vital_entry network "the network over which this host is reached ($names)"
}

# addresses_in TEXT - the IP addresses that an option or a source of a mount, or a line of sysfs, has.
addresses_in() { grep -oE '[0-9]{1,3}(\.[0-9]{1,3}){3}|(^|addr=)[0-9a-f]*:[0-9a-f:]+' <<<"$1" | sed 's/^addr=//' | sort -u || :; }

# network_carriers [ADDRESS...] - also on the way to these, which may be another one, as of a network for storage alone.
network_carriers() {
  local name WAYS
  find_reached
  WAYS=("${REACHED[@]}")
  find_ways "$@"
  put_in_order "${WAYS[@]}"
  ((${#IN_ORDER[@]} > 0)) || TROUBLE="no interface has a default route or this connection"
  [[ -z $NO_WAY ]] || TROUBLE=$NO_WAY
  for name in "${IN_ORDER[@]}"; do interface_carriers "$name"; done
}

# every_network - where nothing says which way data takes: each interface that has an address.
every_network() {
  local name text
  network_carriers
  text=$(exec_within "$ASK_SECONDS" ip -o addr show 2>/dev/null) || TROUBLE="which interfaces have an address isn't known: ip gave no answer"
  while read -r name; do
    [[ -z $name || $name == lo ]] || interface_carriers "$name"
  done < <(awk '{ sub(/@.*/, "", $2); print $2 }' <<<"$text" | sort -u)
}

# find_ways ADDRESS... - adds to WAYS of the caller: the interface to each. NO_WAY: why one isn't known.
NO_WAY=''
find_ways() {
  local address line text status
  for address in "$@"; do
    status=0
    text=$(exec_within "$ASK_SECONDS" ip -o route get "$address" 2>/dev/null) || status=$?
    # 2: the kernel has no way there (ip(8)), so that nothing comes from there either.
    ((status == 0 || status == 2)) || NO_WAY="the way to $address isn't known: ip gave no answer"
    while IFS= read -r line; do
      [[ ! $line =~ .*\ dev\ ([^\ ]+) ]] || WAYS+=("${BASH_REMATCH[1]}")
    done <<<"$text"
  done
}

# find_reached - sets REACHED: the interfaces of this connection and of the default routes. Asked once: it is the same for all that comes over a network.
REACHED=()
find_reached() {
  local client server line name destination rest found text WAYS=()
  ((${#REACHED[@]} == 0)) || return 0
  find_connection
  if [[ -n $CONNECTION ]]; then
    read -r client _ server _ <<<"$CONNECTION"
    client=${client#::ffff:} server=${server#::ffff:}
    find_ways "${client%%%*}"
    text=$(exec_within "$ASK_SECONDS" ip -o addr show 2>/dev/null) || NO_WAY="which interface has this connection isn't known: ip gave no answer"
    while read -r _ name _ found _; do
      [[ ${found%%/*} != "${server%%%*}" ]] || WAYS+=("$name")
    done <<<"$text"
  fi
  note_unreadable "$ROOT/proc/net/route" "$ROOT/proc/net/ipv6_route"
  read_lines "$ROOT/proc/net/route"
  for line in "${READ_LINES[@]}"; do
    read -r name destination rest <<<"$line"
    [[ $destination != 00000000 ]] || WAYS+=("$name")
  done
  read_lines "$ROOT/proc/net/ipv6_route"
  for line in "${READ_LINES[@]}"; do
    read -r destination rest <<<"$line"
    name=${rest##* }
    [[ $destination != "${destination//[!0]/}" || ${rest%% *} != 00 || $name == lo ]] || WAYS+=("$name")
  done
  put_in_order "${WAYS[@]}"
  REACHED=("${IN_ORDER[@]}")
}

# interface_carriers NAME - down through bridges, bonds, VLANs and Open vSwitch.
interface_carriers() {
  local dir=$ROOT/sys/class/net/$1 real lower name below=no
  [[ -e $dir && -z ${SEEN[$1]:-} ]] || return 0 # no disk has the name of an interface
  SEEN[$1]=yes
  find_folder "$dir" || FOLDER=''
  real=$FOLDER
  if carriers_in "$real"; then
    # Without its physical function, a virtual one is gone as well.
    if [[ -L $real/device/physfn ]]; then carriers_in "$(readlink -f "$real/device/physfn")" || :; fi
    return 0
  fi
  for lower in "$dir"/lower_* "$dir"/brif/*; do
    [[ -e $lower ]] || continue
    below=yes
    name=${lower##*/}
    interface_carriers "${name#lower_}"
  done
  if [[ -r $dir/bonding/slaves ]]; then
    for name in $(<"$dir/bonding/slaves"); do
      below=yes
      interface_carriers "$name"
    done
  fi
  [[ $below == no && -e $ROOT/sys/class/net/ovs-system ]] || return 0
  # Open vSwitch shows no ports in sysfs: every interface that it has.
  for lower in "$ROOT"/sys/class/net/*/master; do
    [[ -L $lower && $(readlink "$lower") == */ovs-system ]] || continue
    lower=${lower%/master}
    interface_carriers "${lower##*/}"
  done
}
