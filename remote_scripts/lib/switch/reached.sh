#!/usr/bin/env bash
# How this host is reached.
# Needs: common, lines
#
# Gives: find_way -> ADDRESS, INTERFACE, PORT, LISTENS, GATEWAY; find_connection -> CONNECTION; interface_of ADDRESS; listens PORT; default_routes 4|6;
#   answering_gateway (of ADDRESS and INTERFACE).

# find_way - ADDRESS, INTERFACE and PORT of this host over which it is being configured (over the default route's, where it isn't by SSH),
# LISTENS (does somebody, on the port?), GATEWAY (that of the default route, if it answers). Empty: it can't be told.
find_way() {
  find_connection
  read -r _ _ ADDRESS PORT _ <<<"$CONNECTION" || :
  ADDRESS=${ADDRESS%%\%*} # fe80::1%vmbr0
  if [[ -z $ADDRESS ]]; then
    INTERFACE=$(default_routes 4 | cut -d ' ' -f 2 | head -n 1)
    [[ -z $INTERFACE ]] || ADDRESS=$(ip -o -4 address show dev "$INTERFACE" 2>/dev/null | awk '{ sub("/.*", "", $4); print $4; exit }')
  fi
  PORT=${PORT:-22} LISTENS=no GATEWAY=''
  INTERFACE=$(interface_of "$ADDRESS")
  ! listens "$PORT" || LISTENS=yes
  GATEWAY=$(answering_gateway)
}

# find_connection - sets CONNECTION: what sshd says of the connection: "CLIENT PORT SERVER PORT". sudo takes it from a command's environment; then it is found
# in that of sudo itself, or of whoever started it.
find_connection() {
  local process=$PPID one environment
  CONNECTION=${SSH_CONNECTION:-}
  while [[ -z $CONNECTION && -n $process ]] && ((process > 1)); do
    { mapfile -d '' -t environment <"$ROOT/proc/$process/environ"; } 2>/dev/null || break
    for one in "${environment[@]}"; do
      [[ $one != SSH_CONNECTION=* ]] || CONNECTION=${one#*=}
    done
    find_first "$ROOT/proc/$process/status" '^PPid:[[:space:]]*(.*)$'
    process=$FIRST
  done
}

# interface_of ADDRESS - the interface that has it, if it is up.
interface_of() {
  local interface state=unknown
  [[ -n $1 ]] || return 0
  interface=$(ip -o address show to "$1" 2>/dev/null | awk '{ sub("@.*", "", $2); print $2; exit }')
  [[ -n $interface ]] || return 0
  [[ ! -r $ROOT/sys/class/net/$interface/operstate ]] || state=$(<"$ROOT/sys/class/net/$interface/operstate")
  # `unknown`: loopback, tunnels and the like, which have no carrier.
  [[ $state != up && $state != unknown ]] || printf '%s' "$interface"
}

# listens PORT - does anybody? From the kernel's tables: state 0A is LISTEN.
listens() {
  local port
  printf -v port '%04X' "$1"
  { cat "$ROOT/proc/net/tcp" "$ROOT/proc/net/tcp6" 2>/dev/null || :; } |
    awk -v port="$port" '{ n = split($2, part, ":") } $4 == "0A" && part[n] == port { found = 1 } END { exit !found }'
}

# default_routes 4|6 - a line for each: GATEWAY INTERFACE.
default_routes() {
  ip "-$1" route show default 2>/dev/null |
    awk '{ via = ""; dev = ""; for (i = 1; i < NF; i++) { if ($i == "via") via = $(i + 1); if ($i == "dev") dev = $(i + 1) } if (via != "" && dev != "") print via, dev }'
}

# answering_gateway - the gateway of ADDRESS's default route (that over INTERFACE, if there is one) that answers within a few seconds.
answering_gateway() {
  local family=4 routes over gateway interface deadline=$((SECONDS + ${GATEWAY_SECONDS:-10}))
  [[ $ADDRESS != *:* ]] || family=6
  routes=$(default_routes "$family")
  over=$(awk -v interface="$INTERFACE" '$2 == interface' <<<"$routes")
  while [[ -n $routes ]]; do
    while read -r gateway interface; do
      if answers "$gateway" "$interface"; then
        printf '%s' "$gateway"
        return
      fi
    done <<<"${over:-$routes}"
    ((SECONDS < deadline)) || return 0
    sleep 1
  done
}

# answers GATEWAY INTERFACE - to an echo request; or, since some answer none, to the question for its hardware address that comes before.
answers() {
  local target=$1
  [[ $1 != fe80:* ]] || target=$1%$2
  ! timeout 5 ping -n -c 1 -W 1 "$target" >/dev/null 2>&1 || return 0
  [[ $(ip neighbour show to "$1" dev "$2" 2>/dev/null) == *" REACHABLE"* ]]
}
