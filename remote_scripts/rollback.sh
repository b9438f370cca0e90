#!/usr/bin/env bash
# What the dead man's switch runs on the host, ROLLBACK_AFTER seconds after each boot's start, until it is disarmed (lib/rollback.sh): it
# decides whether the boot is to be undone, then takes our configuration away and restarts the host.
# The command line first, since it is the one switch. Whatever fails or hangs, the rest still happens.
#
# Arguments: ROLLBACK_AFTER (seconds), ENTRY_SYSTEMD_BOOT.
# Changes: all that cmdline.sh and vfio_initramfs.sh wrote; leaves /var/lib/homelab/rolled-back or judged, which `up` reports.
# Verbs: none: it decides and rolls back; or a function's name and its arguments, which is one step of that.

LOADER=$(switch_note rolling-back loader)
LOADER=${LOADER:-$(switch_note armed loader)}
LOADER=${LOADER:-grub}
exec {LOCK}</dev/null # steps run while the lock is held for them

# So many boots are restarted, where they still run with our words.
MOST_BOOTS=4

trap - ERR EXIT HUP TERM # a step that fails says so by its status
# Nothing is put back here, and a full disk has no room for copies.
remember() { :; }

# judge - says how this host is reached, or what of it doesn't hold, and fails then. What held when the switch was armed has to.
judge() {
  local deadline=$((SECONDS + ROLLBACK_AFTER / 10)) wanted
  wanted=$(switch_note armed address)
  if [[ -z $wanted ]]; then
    printf 'it is not known over which address this host is reached'
    return 1
  fi
  until is_reached "$wanted"; do
    if ((SECONDS >= deadline)); then
      printf '%s' "$VERDICT"
      return 1
    fi
    sleep 1
  done
  printf '%s' "$VERDICT"
}

# is_reached ADDRESS - sets VERDICT.
is_reached() {
  local port old asked=', its gateway was not asked, since none answered when it was configured' heard
  ADDRESS=$1
  INTERFACE=$(interface_of "$ADDRESS")
  if [[ -z $INTERFACE ]]; then
    VERDICT="no interface that is up has $ADDRESS, over which it was configured ($(switch_note armed interface) had)"
    return 1
  fi
  port=$(switch_note armed port)
  heard=", whether sshd listens was not asked, since nothing did on port $port when it was configured"
  if [[ $(switch_note armed listens) == yes ]]; then
    heard=", and sshd listens on port $port"
    if ! listens "$port"; then
      VERDICT="nothing listens on port $port, on which sshd did when it was configured"
      return 1
    fi
  fi
  old=$(switch_note armed gateway)
  if [[ -n $old ]]; then
    GATEWAY=$(answering_gateway)
    if [[ -z $GATEWAY ]]; then
      VERDICT="no default gateway answers, and $old did when it was configured"
      return 1
    fi
    asked=", its gateway $GATEWAY answers"
  fi
  VERDICT="$INTERFACE is up with $ADDRESS$asked$heard"
}

# -- rolling back ----------------------------------------------------------------------------------------------
# roll_back - what the timer runs. Nothing here may stop it: whatever can fail or hang is a step.
roll_back() {
  set +eu
  local reason='' verdict='' status=1 here until noted=yes failed=no differs=no restart=yes boots layer path
  here=$(boot_id)
  if [[ ! -e $STATE/rolling-back ]]; then
    if [[ ! -e $STATE/armed ]]; then
      step 60 disarm # what a power cut left of it
      return 0
    fi
    # Armed in this boot it is for the next one: somebody is in reach of this.
    [[ $(switch_note armed boot) != "$here" ]] || return 0
    until=$(switch_note armed until)
    if step 60 is_all_given_back; then
      status=0 reason="has nothing of this program in its boot configuration any more, so that there is nothing to give back"
    elif step 60 is_another_boot; then
      # By the second entry, which a person or a roll-back that could note nothing has chosen, or from an older menu: the next boot
      # with what is configured is the one to look at.
      step 60 pass_over "boot $here runs without what is configured: another boot entry was chosen, or the entries are older"
      return 0
    elif [[ $until =~ ^[0-9]+$ ]] && (($(date +%s) < until)); then
      reason="was not confirmed within $ROLLBACK_AFTER s of its start"
    else
      verdict=$(step $((ROLLBACK_AFTER / 10 + 120)) judge)
      status=$?
      [[ -n $verdict ]] || verdict="how this host is reached could not be told"
      reason="was waited for by no \`up\`, and judged by this host itself $ROLLBACK_AFTER s after its start: $verdict"
    fi
  fi
  hold_lock
  if [[ -e $STATE/rolling-back ]]; then
    log "going on with a roll-back"
    # Begun in another boot: this one needs a restart only if it still runs with our words.
    [[ $(switch_note rolling-back boot) == "$here" ]] || here=''
  elif [[ -z $reason || ! -e $STATE/armed || $(switch_note armed boot) == "$here" ]]; then
    return 0 # confirmed, given back or armed anew meanwhile
  elif ((status == 0)); then
    step 60 stay "boot $here $reason"
    return 0
  else
    log "boot $here $reason: giving back the boot configuration from before"
    if ! mv -T "$STATE/armed" "$STATE/rolling-back"; then
      [[ -e $STATE/armed ]] || return 0
      here='' # the next boot won't know of this one: nothing but our words is a reason to restart again and again
    fi
  fi
  { make_run_dir && printf 'boot %s %s' "$(boot_id)" "${reason:-is being undone}" >"$RUN/restarting"; } ||
    log "it could not be noted in $RUN that this boot is being undone"
  step 60 begin "$reason" || noted=no
  # Now: with the last of what was noted goes this program, too.
  if [[ -z $here ]]; then
    step 60 runs_with_our_words || restart=no
    # What boots had no effect on, another one will not change; and a person may be at work on it.
    boots=$(switch_note rolling-back boots)
    [[ ! $boots =~ ^[0-9]+$ ]] || ((boots <= MOST_BOOTS)) || restart=no
  fi
  for layer in vfio iommu; do
    step 60 drop_words "$layer" || failed=yes
  done
  if ! step 600 generate; then
    failed=yes
  elif [[ $failed == no ]]; then
    differs=yes
  fi
  if [[ $failed == yes ]]; then
    # The next boot takes the second entry, and our words go out of the configuration that was generated before. Either is enough.
    if step 150 choose_second_entry && has_second_entry; then differs=yes; fi
    if step 150 take_words_out; then differs=yes; fi
  else
    step 300 drop_second_entries || failed=yes
  fi
  if [[ $noted == yes ]]; then
    for layer in vfio iommu; do
      while IFS= read -r path <&3; do
        step 60 drop_file "$layer" "$path" || failed=yes
      done 3< <(layer_files "$layer")
    done
    ! is_pending initramfs || step 1800 make_initramfs || failed=yes
  else # a full disk: what has no effect without our words can wait for a boot that can note what is left to do
    failed=yes
  fi
  step 300 sync -f "$ROOT/etc" "$ROOT/boot" "$STATE"
  if [[ $failed == no ]]; then
    step 300 conclude
  else
    log "the roll-back is not finished: the switch stays armed, and goes on at the next boot"
  fi
  if [[ $restart == yes && $noted == no && $differs == no ]] && ! step 60 is_next_boot_another; then
    # It would come back the same, and nobody could count how often.
    restart=no
    say_to_all "boot $(boot_id) ${reason:-is to be undone}, and nothing could be written that the next boot would read \
($(places_in_words)). This host is not restarted, since it would come back the same. Choose the entry 'without GPU passthrough' in its \
boot menu; once it can write again, the next boot goes on."
  fi
  if [[ $restart == yes ]]; then
    restart_host
    return 0
  fi
  rm -f "$RUN/restarting"
  [[ $failed == no || ! -e $STATE/rolling-back ]] || step 60 rest
  return 0
}

# In the process group of the step, so that it ends with that.
within() { timeout --foreground -k 2 "$1" env --default-signal=TERM,HUP,PIPE "${@:2}"; }

# step SECONDS COMMAND [ARGUMENT...] - a function of this program in a bash of its own (where an error ends it), killed after that time with all that it started.
step() {
  local status=0
  if [[ $2 == sync ]]; then
    timeout -s KILL "${STEP_SECONDS:-$1}" "${@:2}" </dev/null
  else
    timeout -s KILL "${STEP_SECONDS:-$1}" bash "$0" "${@:2}" </dev/null
  fi || status=$?
  ((status == 0)) || [[ $2 == judge || $2 == is_* || $2 == runs_* ]] || log "step failed with status $status (137: it hung): ${*:2}"
  return "$status"
}

# hold_lock - so that nobody writes meanwhile; but somebody who hangs must not keep us from it.
hold_lock() {
  { make_run_dir && get_lock "${LOCK_TIMEOUT:-60}"; } || log "another run holds the lock: going on without it"
}

# stay SENTENCE - this boot is in order. The sentence is for the next `up`.
stay() {
  printf '%s' "$1" | write_atomically /var/lib/homelab/judged 0600
  disarm
}

# pass_over SENTENCE - for the next `up`; the switch stays.
pass_over() {
  log "$1"
  printf '%s; the one that is configured was not judged' "$1" | write_atomically /var/lib/homelab/judged 0600
}

conclude() {
  disarm
  finish
}

# begin REASON - notes what a later boot needs to go on, and tells. REASON is empty where it was noted.
begin() {
  local words reason decided boots
  words=$(our_words)
  boots=$(switch_note rolling-back boots)
  reason=$(switch_note rolling-back reason)
  decided=$(switch_note rolling-back decided)
  printf 'boot %s\nloader %s\ndecided %s\nreason %s\nwords %s\nboots %s\n' "$(boot_id)" "$LOADER" "${decided:-$(boot_id)}" "${1:-$reason}" "$words" \
    "$((${boots:-0} + 1))" |
    write_atomically /var/lib/homelab/rolling-back 0600
  printf 'boot %s %s' "${decided:-$(boot_id)}" "${1:-$reason}" | write_atomically /var/lib/homelab/rolled-back 0600
  pending boot
  [[ -z $(layer_files vfio) ]] || pending initramfs
}

# rest - there is nothing to restart for, and something left to do.
rest() {
  local record
  record=$(sed 's/^boot .*/boot resting/' "$STATE/rolling-back") && printf '%s\n' "$record" | write_atomically /var/lib/homelab/rolling-back 0600
}

# our_words - those that we put on the command line, as they were noted when the roll-back began or are recorded still.
our_words() {
  local word found=''
  for word in $(switch_note rolling-back words) $(words_of_ours) $(grep -oE 'homelab\.vfio=[^[:space:]]*' "$ROOT/proc/cmdline"); do
    [[ " $found " == *" $word "* ]] || found+="${found:+ }$word"
  done
  printf '%s' "$found"
}

runs_with_our_words() {
  local word running others
  running=$(<"$ROOT/proc/cmdline")
  others=$(configured_words others)
  for word in $(our_words); do
    ! has_words "$running" "$word" || has_words "$others" "$word" || return 0
  done
  return 1
}

# drop_words LAYER - first of all, since they are the one switch.
drop_words() {
  drop_file "$1" "/etc/default/grub.d/zz-homelab-$1.cfg"
  drop_file "$1" /etc/grub.d/12_homelab
  [[ ! -e $STATE/cmdline/$1 ]] || edit_kernel_cmdline "$1" ''
  finish
}

generate() {
  rm -f "$ROOT/boot/grub/.homelab-tmp" # of take_words_out, cut off
  generate_boot_config
  done_with boot
}

# drop_second_entries - systemd-boot's. GRUB's went with its configuration.
drop_second_entries() {
  [[ $LOADER != systemd-boot ]] || run_logged bash -c "$ENTRY_SYSTEMD_BOOT" zzz-homelab remove
}

# is_next_boot_another - for GRUB without ESPs of Proxmox VE's, which can be read: does its menu lack a word that this boot has from us?
is_next_boot_another() {
  local word running next
  ! has_managed_esps || return 1
  running=$(<"$ROOT/proc/cmdline")
  next=$(generated_words)
  [[ -n $next ]] || return 1
  for word in $(our_words); do
    ! has_words "$running" "$word" || has_words "$next" "$word" || return 0
  done
  return 1
}

# has_second_entry - is there one to choose? With systemd-boot's hook there is; GRUB's was found.
has_second_entry() { [[ $LOADER != systemd-boot || -e $ROOT/etc/kernel/postinst.d/zzz-homelab ]]; }

choose_second_entry() {
  local entry
  if [[ $LOADER == systemd-boot ]]; then
    bootctl set-oneshot "homelab-without-gpu-$(uname -r).conf"
    return
  fi
  if has_managed_esps; then return 1; fi # there GRUB reads another environment
  entry=$(sed -nE "s/^menuentry .*'(homelab-without-gpu-[^']*)'.*/\1/p" "$ROOT/boot/grub/grub.cfg" | head -n 1)
  [[ -n $entry ]]
  grub-reboot "$entry"
}

# take_words_out - fails where there was nothing to take, too: the next boot is no other one then.
take_words_out() {
  local words uuid esp failed=0 TAKEN=no
  read -ra words <<<"$(our_words)"
  ((${#words[@]} > 0)) || return 1
  if ! has_managed_esps; then
    take_words_out_of "$ROOT/boot/grub/grub.cfg" && [[ $TAKEN == yes ]]
    return
  fi
  while read -r uuid || [[ -n $uuid ]]; do
    [[ -n $uuid && -e $ROOT/dev/disk/by-uuid/$uuid ]] || continue
    esp=$(mktemp -d "$ROOT/run/homelab-esp.XXXXXX")
    if mount "$ROOT/dev/disk/by-uuid/$uuid" "$esp"; then
      take_words_out_of "$esp/grub/grub.cfg" "$esp"/loader/entries/proxmox-*.conf || failed=1
      umount "$esp" || failed=1
    else
      failed=1
    fi
    rmdir "$esp" || failed=1
  done <"$ROOT/etc/kernel/proxmox-boot-uuids"
  ((failed == 0)) || log "our words could not be taken out of every ESP"
  [[ $TAKEN == yes ]]
}

# take_words_out_of FILE... - out of the lines that give a kernel its command line. Its caller's words.
take_words_out_of() {
  local file line text
  for file; do
    [[ -e $file ]] || continue
    is_in_entries "$file" || continue
    text=''
    while IFS= read -r line || [[ -n $line ]]; do
      [[ ! $line =~ ^[[:space:]]*(linux|linuxefi|options)[[:space:]] ]] || line=$(without_words "$line" "${words[@]}")
      text+=$line$'\n'
    done <"$file"
    # Its own mode; beside it, so that a full disk leaves the old one.
    if ! { cp -aT "$file" "${file%/*}/.homelab-tmp" && printf '%s' "$text" >"${file%/*}/.homelab-tmp" &&
      sync "${file%/*}/.homelab-tmp" && mv -fT "${file%/*}/.homelab-tmp" "$file"; }; then
      rm -f "${file%/*}/.homelab-tmp"
      return 1
    fi
    TAKEN=yes
  done
}

# is_in_entries FILE - one of `words`, in a line that gives a kernel its command line.
is_in_entries() {
  local line word
  while IFS= read -r line || [[ -n $line ]]; do
    [[ $line =~ ^[[:space:]]*(linux|linuxefi|options)[[:space:]] ]] || continue
    for word in "${words[@]}"; do
      [[ " $line " != *" $word "* ]] || return 0
    done
  done <"$1"
  return 1
}

# places_in_words - where nothing could be written, as far as it can be told.
places_in_words() {
  local place found=''
  for place in /var/lib/homelab /etc /boot; do
    [[ -w $ROOT$place ]] || found+="${found:+, }$place"
  done
  if [[ -n $found ]]; then printf 'not writable: %s' "$found"; else printf 'the steps above say why'; fi
}

# say_to_all SENTENCE - to the journal, and by the kernel's log to the host's screen: nobody may get any other word of it.
say_to_all() {
  log "$1"
  # shellcheck disable=SC2016 # of that bash
  timeout -s KILL 10 bash -c 'printf "<2>homelab: %s\n" "$1" >"$2"' - "$1" "$ROOT/dev/kmsg" 2>/dev/null || :
}

# restart_host - in an orderly way; by force when that fails, or has not ended it after a while. The last of these is reboot(2) from systemctl
# itself: it flushes every disk first, and asks every driver to stop, so that a disk or a card that is gone can hang it. The kernel's
# emergency restart asks nobody; and bash alone writes for it, since no program may start any more.
restart_host() {
  local force
  for force in '' --force '--force --force'; do
    # shellcheck disable=SC2086 # several options
    if timeout -s KILL 60 systemctl reboot $force; then
      sleep "${REBOOT_SECONDS:-600}"
    else
      log "systemctl reboot $force failed"
      sleep "${RETRY_SECONDS:-5}"
    fi
  done
  step 60 sync
  say_to_all "no \`systemctl reboot\` has ended this boot: restarting by the kernel's emergency restart"
  { printf b >"$ROOT/proc/sysrq-trigger"; } 2>/dev/null || :
  sleep "${RETRY_SECONDS:-5}"
  say_to_all "this host could not be restarted: switch it off and on by hand"
}

"${@:-roll_back}" </dev/null
exit
