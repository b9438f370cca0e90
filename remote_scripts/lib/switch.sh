#!/usr/bin/env bash
# The dead man's switch: a timer that runs /var/lib/homelab/rollback some time after each boot, until it is disarmed. Armed before the first
# write that a boot would read; disarmed by a confirmed boot, by the host that judges its own boot, or when everything is given back.
# Needs: files, boot, words, switch/reached
#
# Gives: boot_id; switch_note FILE KEY; is_rolling_back, find_rolled_back -> ROLLED_BACK; words_of_ours; is_another_boot; is_all_given_back.
#
# On the host, in STATE:
#   rollback      the program (rollback.sh), which needs nothing else
#   armed         KEY VALUE lines: in which boot, until when an `up` waits for the next one, how this host was reached then
#   rolling-back  `armed`, renamed: taking it away first is what decides between a roll-back and whoever confirms
#   rolled-back   for people: which boot was undone, and why. The next `up` fails with it
#   judged        for people: that this host judged its boot itself, and stays. The next `up` says it
# In RUN, which no boot keeps and every disk fault leaves writable:
#   restarting    for people: which boot is being undone, and why; until it has ended
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

# find_rolled_back - sets ROLLED_BACK: which boot was undone, and why; nothing where none was.
find_rolled_back() {
  local TEXT=''
  if [[ -s $STATE/rolled-back ]]; then
    read_text "$STATE/rolled-back"
  elif [[ -s $RUN/restarting ]]; then
    read_text "$RUN/restarting"
  elif [[ -e $STATE/rolling-back ]]; then # cut off before it could tell
    TEXT="the boot after $(switch_note rolling-back boot) was not confirmed"
  fi
  cut_end "$TEXT"
  ROLLED_BACK=$TEXT
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
  local LOADER word running
  LOADER=$(switch_note armed loader)
  running=$(<"$ROOT/proc/cmdline")
  find_configured
  for word in $(words_of_ours); do
    ! has_words "$CONFIGURED" "$word" || has_words "$running" "$word" || return 0
  done
  return 1
}

# is_all_given_back - is nothing of ours left that a boot reads? No, where it can't be told.
is_all_given_back() {
  local layer left='' FILES
  for layer in iommu vfio; do
    find_layer_files "$layer"
    ((${#FILES[@]} == 0)) || return 1
  done
  [[ ! -d $STATE/cmdline ]] || left=$(find "$STATE/cmdline" -type f) || return 1
  [[ -z $left ]] && ! is_pending boot && ! is_pending initramfs
}
