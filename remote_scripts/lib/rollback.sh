#!/usr/bin/env bash
# The dead man's switch: a timer that runs /var/lib/homelab/rollback some time after each boot, until it is disarmed. Armed before the first
# write that a boot would read; disarmed by a confirmed boot, by the host that judges its own boot, or when everything is given back.
#
# On the host, in STATE:
#   rollback      the program (rollback.sh), which needs nothing else
#   armed         KEY VALUE lines: in which boot, until when an `up` waits for the next one, how this host was reached then
#   rolling-back  `armed`, renamed: taking it away first is what decides between a roll-back and whoever confirms
#   rolled-back   for people: which boot was undone, and why. The next `up` fails with it
#   judged        for people: that this host judged its boot itself, and stays. The next `up` says it
# In RUN, which no boot keeps and every disk fault leaves writable:
#   restarting    for people: which boot is being undone, and why; until it has ended
# Variables, for `arm`: ROLLBACK_AFTER (seconds after each boot's start), ROLLBACK (rollback.sh, as the switch runs it).
SWITCH_PROGRAM=/var/lib/homelab/rollback
SWITCH_UNITS=/etc/systemd/system
SWITCH_LINK=$SWITCH_UNITS/timers.target.wants/homelab-rollback.timer

boot_id() { printf '%s' "$(<"$ROOT/proc/sys/kernel/random/boot_id")"; }

# switch_note FILE KEY - what `armed` or `rolling-back` says; nothing where it doesn't.
switch_note() {
  local key value
  [[ -r $STATE/$1 ]] || return 0
  while read -r key value; do
    if [[ $key == "$2" ]]; then
      printf '%s' "$value"
      return
    fi
  done <"$STATE/$1"
}

# is_rolling_back - has a roll-back begun that still has to restart this host? One that could not be finished rests until the next boot.
is_rolling_back() { [[ -e $RUN/restarting || (-e $STATE/rolling-back && $(switch_note rolling-back boot) != resting) ]]; }

# rolled_back - which boot was undone, and why; nothing where none was.
rolled_back() {
  if [[ -s $STATE/rolled-back ]]; then
    cat "$STATE/rolled-back"
  elif [[ -s $RUN/restarting ]]; then
    cat "$RUN/restarting"
  elif [[ -e $STATE/rolling-back ]]; then # cut off before it could tell
    printf 'the boot after %s was not confirmed' "$(switch_note rolling-back boot)"
  fi
}

# words_of_ours - what we put on the command line of the next boot, as it is recorded.
words_of_ours() {
  local word found=''
  for word in $(cat "$STATE"/cmdline/* 2>/dev/null) \
    $(sed -nE 's/^export HOMELAB_WORDS="\$\{HOMELAB_WORDS:-\} (.*)"$/\1/p' "$ROOT"/etc/default/grub.d/zz-homelab-*.cfg 2>/dev/null); do
    [[ " $found " == *" $word "* ]] || found+="${found:+ }$word"
  done
  printf '%s' "$found"
}

# is_another_boot - does this one run without what we configured (by the second entry, or from older entries)? Then it shows nothing of that.
is_another_boot() {
  local LOADER word running next
  LOADER=$(switch_note armed loader)
  running=$(<"$ROOT/proc/cmdline")
  next=$(configured_words)
  for word in $(words_of_ours); do
    ! has_words "$next" "$word" || has_words "$running" "$word" || return 0
  done
  return 1
}

# is_all_given_back - is nothing of ours left that a boot reads? No, where it can't be told.
is_all_given_back() {
  local left
  left=$(layer_files iommu && layer_files vfio && { [[ ! -d $STATE/cmdline ]] || find "$STATE/cmdline" -type f; }) || return 1
  [[ -z $left ]] && ! is_pending boot && ! is_pending initramfs
}

# -- arming ----------------------------------------------------------------------------------------------------
# await_no_boot - whoever restarts this host now, no `up` waits for it.
await_no_boot() {
  local record
  record=$(sed '/^until /d' "$STATE/armed") && printf '%s\n' "$record" | write_atomically /var/lib/homelab/armed 0600
}

# arm [SECONDS] - SECONDS: for so long from now an `up` waits for the next boot. Without: what is armed in this boot stays as it is.
arm() {
  local record boot temporary
  boot=$(boot_id)
  [[ ! -e $RUN/restarting && $(switch_note rolling-back boot) != "$boot" ]] || die "the next boot of this host configured" \
    "it is giving back its boot configuration now: $(rolled_back)" \
    "it restarts when that is done, and would lose what is written meanwhile" \
    "wait for its restart (\`journalctl -u homelab-rollback\` on the host shows it), then run \`pulumi up --refresh\`"
  if [[ -z ${1:-} && $(switch_note armed boot) == "$boot" ]]; then
    record=$(<"$STATE/armed")
  else
    record=$(switch_record "${1:-}")
  fi
  BEFORE_WRITE=:
  need_dir "$STATE"
  switch_file "$SWITCH_PROGRAM" 0700 "$ROLLBACK"
  switch_file /var/lib/homelab/armed 0600 "$record"
  switch_file "$SWITCH_UNITS/homelab-rollback.service" 0644 "$(switch_service)"
  switch_file "$SWITCH_UNITS/homelab-rollback.timer" 0644 "$(switch_timer)"
  # Enabled, not started: it counts from the next boot. As `systemctl enable` does it, which needs nothing of a running systemd either.
  if [[ ! -L $ROOT$SWITCH_LINK ]]; then
    make_dir "${SWITCH_LINK%/*}"
    remember "$SWITCH_LINK"
    temporary=$(temporary_for "$SWITCH_LINK")
    ln -sfT "$SWITCH_UNITS/homelab-rollback.timer" "$temporary"
    in_place "$temporary" "$SWITCH_LINK"
    run_logged timeout -s KILL 60 systemctl daemon-reload || log "systemctl daemon-reload failed: the units are read at boot anyway"
  fi
  forget_boots
}

# switch_file PATH MODE TEXT - as `put_file`, but it is `disarm` that takes it away.
switch_file() {
  [[ ! -e $ROOT$1 || $(<"$ROOT$1") != "$3" ]] || return 0
  make_dir "${1%/*}"
  remember "$1"
  printf '%s\n' "$3" | write_atomically "$1" "$2"
}

# forget_boots - what became of earlier boots is no news any more, and the next one takes the default entry.
forget_boots() {
  local name
  for name in rolling-back rolled-back judged; do
    remember "/var/lib/homelab/$name"
    remove_file "/var/lib/homelab/$name"
  done
  forget_second_entry
}

# disarm - first what decides, then the rest: a cut in between leaves a program that only takes itself away, or one that nothing starts any
# more, which goes with the next run.
disarm() {
  remove_file /var/lib/homelab/armed /var/lib/homelab/rolling-back
  if [[ -e $ROOT$SWITCH_UNITS/homelab-rollback.timer ]]; then
    run_logged timeout -s KILL 60 systemctl stop homelab-rollback.timer || log "the timer could not be stopped: $OUTPUT"
  fi
  remove_file "$SWITCH_LINK" "$SWITCH_UNITS/homelab-rollback.service" "$SWITCH_UNITS/homelab-rollback.timer" "$SWITCH_PROGRAM"
  run_logged timeout -s KILL 60 systemctl daemon-reload || log "systemctl daemon-reload failed: $OUTPUT"
  forget_second_entry
}

is_switch_there() { [[ -e $STATE/armed || -e $STATE/rolling-back || -e $ROOT$SWITCH_PROGRAM || -e $ROOT$SWITCH_UNITS/homelab-rollback.timer ]]; }

# disarm_when_given_back - after a `revert`: the switch stays for as long as a boot would read anything of ours.
disarm_when_given_back() {
  is_switch_there || [[ -e $STATE/rolled-back || -e $STATE/judged ]] || return 0
  finish # settles the records
  is_all_given_back || return 0
  if is_switch_there; then disarm; fi
  remove_file /var/lib/homelab/rolled-back /var/lib/homelab/judged
}

switch_service() {
  cat <<'UNIT'
# Written by homelab: takes back a boot configuration that nobody confirmed. Gone once the boot is confirmed.
[Unit]
Description=homelab: give back the boot configuration from before, unless this boot is in order
ConditionPathExists=/var/lib/homelab/rollback
# Not stopped by a shutdown: it forces one that hangs.
DefaultDependencies=no

[Service]
Type=oneshot
ExecStart=/bin/bash /var/lib/homelab/rollback
Restart=on-failure
RestartSec=10
UNIT
}

switch_timer() {
  cat <<UNIT
# Written by homelab: see homelab-rollback.service.
[Unit]
Description=homelab: wait for the boot to be confirmed
# Started first of all: a boot that ends in emergency mode, since a disk is gone, starts no other timer.
DefaultDependencies=no
Conflicts=shutdown.target
Before=shutdown.target

[Timer]
# From systemd's start on: an initramfs may wait for the passphrase of a disk for as long as it likes.
OnStartupSec=${ROLLBACK_AFTER}s
AccuracySec=1s

[Install]
WantedBy=timers.target
UNIT
}

# switch_record [SECONDS] - the lines of `armed`.
switch_record() {
  [[ -n ${LOADER:-} ]] || find_boot_loader
  find_way
  printf 'boot %s\nloader %s\n' "$(boot_id)" "${LOADER:-grub}"
  [[ -z ${1:-} ]] || printf 'until %s\n' "$(($(date +%s) + $1))"
  printf 'address %s\ninterface %s\nport %s\nlistens %s\ngateway %s\n' "$ADDRESS" "$INTERFACE" "$PORT" "$LISTENS" "$GATEWAY"
}

# forget_second_entry - the default again: GRUB can't take its choice back by itself where it can't write (LVM, ZFS).
forget_second_entry() {
  local choice=$ROOT/sys/firmware/efi/efivars/LoaderEntryOneShot-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f
  if grep -qs '^next_entry=homelab-without-gpu-' "$ROOT/boot/grub/grubenv"; then
    run_logged grub-editenv - unset next_entry || log "the choice of the second boot entry could not be taken back: $OUTPUT"
  fi
  if [[ -r $choice && $(tr -d '\0' <"$choice") == *homelab-without-gpu-* ]]; then
    run_logged bootctl set-oneshot '' || log "the choice of the second boot entry could not be taken back: $OUTPUT"
  fi
}

# -- how this host is reached ----------------------------------------------------------------------------------
# find_way - ADDRESS, INTERFACE and PORT of this host over which it is being configured (over the default route's, where it isn't by SSH),
# LISTENS (does somebody, on the port?), GATEWAY (that of the default route, if it answers). Empty: it can't be told.
find_way() {
  local connection
  connection=$(ssh_connection)
  read -r _ _ ADDRESS PORT _ <<<"$connection" || :
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

# ssh_connection - what sshd says of the connection: "CLIENT PORT SERVER PORT". sudo takes it from a command's environment; then it is found
# in that of sudo itself, or of whoever started it.
ssh_connection() {
  local process=$PPID found
  found=${SSH_CONNECTION:-}
  while [[ -z $found && -n $process ]] && ((process > 1)); do
    [[ -r $ROOT/proc/$process/environ ]] || break
    found=$(tr '\0' '\n' <"$ROOT/proc/$process/environ" | sed -n 's/^SSH_CONNECTION=//p')
    process=$(sed -n 's/^PPid:[[:space:]]*//p' "$ROOT/proc/$process/status" 2>/dev/null) || process=''
  done
  printf '%s' "$found"
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
