#!/usr/bin/env bash
# apt and dpkg: asked, and waited for where another one has their locks.
# Needs: packages/running
#
# Gives: apt_get LOG ARGUMENT..., apt_update [URL...], simulated LOG ARGUMENT..., announced SIMULATION; run_apt LOG COMMAND...;
#   repair_packages.
# Variables: LOCK_SECONDS, INSTALL_SECONDS.
UPDATE_LOG=$LOGS/update # what apt-get update complained of, where it did
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 APT_LISTCHANGES_FRONTEND=none

# locked LOG - did a command fail as another one holds apt's or dpkg's lock? That it has waited for one is no failure.
locked() { grep -qE '^(E|Error|dpkg): .*(Could not get lock|Unable to (acquire the dpkg frontend lock|lock directory)|lock was locked by)' "$1"; }

# run_apt LOG COMMAND... - waits for others' locks: apt-get itself for dpkg's, this function for those that it doesn't wait for.
run_apt() {
  local file=$1 until=$((SECONDS + ${LOCK_SECONDS:-600})) status said=''
  shift
  while :; do
    status=0
    run_streamed "${INSTALL_SECONDS:-3600}" "$file" "$@" || status=$?
    [[ $status != 0 ]] && locked "$file" && ((SECONDS < until)) || return "$status"
    [[ -n $said ]] || log "waiting up to ${LOCK_SECONDS:-600} s for: $(grep -m1 -E 'lock' "$file")"
    said=yes
    sleep 1
  done
}

# apt_get LOG ARGUMENT... - apt-get that asks nothing and keeps everybody's configuration.
apt_get() {
  local file=$1
  shift
  run_apt "$file" apt-get -y -q -o "DPkg::Lock::Timeout=${LOCK_SECONDS:-600}" -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 -o APT::Status-Fd=9 \
    -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold "$@"
}

# apt_update [URL...] - the lists of all repositories; it fails only if one of URL (the beginning of an address) can't be had, or none can:
# somebody's other repository that is out of order, such as pve-enterprise without a subscription, isn't ours to mend.
apt_update() {
  local status=0 url file=$LOGS/apt
  log "fetching the lists of packages"
  apt_get "$file" update -o APT::Update::Error-Mode=any || status=$?
  rm -f "$UPDATE_LOG"
  [[ $status != 0 ]] || return 0
  grep -E '^(E|W|Err|Error|Warning)[: ]|^ ' "$file" >"$UPDATE_LOG" || cp "$file" "$UPDATE_LOG"
  if ((status >= 124)) || locked "$file" || grep -qE 'sources could not be read|No space left' "$file"; then
    explain "$file" "the lists of packages, by apt-get update" "packages are installed from them"
  fi
  for url in "$@"; do
    # The lines that are about this repository, and those that continue them.
    awk -v url="$url" '/^(E|W|Err|Error|Warning)[: ]/ { mine = index($0, url) > 0 } mine && /^(E|W|Err|Error|Warning)[: ]|^[[:space:]]/' "$file" >"$LOGS/mine"
    [[ ! -s $LOGS/mine ]] || explain "$LOGS/mine" "the list of packages of $url" "what is wanted comes from there"
  done
  log "not all lists could be fetched; those that are needed here are there"
}

# repair_packages - what an interrupted dpkg has left, before anything is added. What it can't repair the next step may replace.
repair_packages() {
  local file=$LOGS/repair
  [[ -n $(dpkg --audit 2>/dev/null) ]] || return 0
  log "packages are half installed: repairing that first"
  run_apt "$file" dpkg --configure -a --force-confdef --force-confold && return 0
  apt_get "$file" install -f --no-remove || log "note: apt-get install -f didn't repair every package"
}

# simulated LOG ARGUMENT... - what apt-get would do.
simulated() {
  local file=$1
  shift
  apt-get -s -q "$@" >"$file" 2>&1 </dev/null
}

# announced SIMULATION - a line for each package that changes: NAME, VERSION BEFORE, VERSION AFTER.
announced() {
  awk -v OFS='\t' '
    $1 == "Inst" { old = "-"; n = 3; if ($3 ~ /^\[/) { old = substr($3, 2, length($3) - 2); n = 4 } print $2, old, substr($n, 2) }
    ($1 == "Remv" || $1 == "Purg") && !seen[$2]++ { old = $3; gsub(/[][]/, "", old); print $2, old, "-" }' "$1"
}
