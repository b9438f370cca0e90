#!/usr/bin/env bash
# Steps of a roll-back, each of which may fail or hang without the others.
# Needs: boot, words, switch/arm, switch/entries
#
# Gives: begin REASON, conclude, rest; stay SENTENCE, pass_over SENTENCE; drop_words LAYER, generate; places_in_words. Variables: LOADER.

# begin REASON - notes what a later boot needs to go on, and tells. REASON is empty where it was noted.
begin() {
  local words reason decided boots FILES
  words=$(our_words)
  boots=$(switch_note rolling-back boots)
  reason=$(switch_note rolling-back reason)
  decided=$(switch_note rolling-back decided)
  write_atomically /var/lib/homelab/rolling-back 0600 printf 'boot %s\nloader %s\ndecided %s\nreason %s\nwords %s\nboots %s\n' \
    "$(boot_id)" "$LOADER" "${decided:-$(boot_id)}" "${1:-$reason}" "$words" "$((${boots:-0} + 1))"
  write_atomically /var/lib/homelab/rolled-back 0600 printf 'boot %s %s' "${decided:-$(boot_id)}" "${1:-$reason}"
  pending boot
  find_layer_files vfio
  ((${#FILES[@]} == 0)) || pending initramfs
}

# conclude - also of what was cut off: no run that would take the lock may ever come.
conclude() {
  disarm
  clear_leftovers
  finish
}

# rest - there is nothing to restart for, and something left to do.
rest() {
  local record
  record=$(sed 's/^boot .*/boot resting/' "$STATE/rolling-back") && write_atomically /var/lib/homelab/rolling-back 0600 printf '%s\n' "$record"
}

# stay SENTENCE - this boot is in order. The sentence is for the next `up`.
stay() {
  write_atomically /var/lib/homelab/judged 0600 printf '%s' "$1"
  disarm
}

# pass_over SENTENCE - for the next `up`; the switch stays.
pass_over() {
  log "$1"
  write_atomically /var/lib/homelab/judged 0600 printf '%s; the one that is configured was not judged' "$1"
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

# places_in_words - where nothing could be written, as far as it can be told.
places_in_words() {
  local place found=''
  for place in /var/lib/homelab /etc /boot; do
    [[ -w $ROOT$place ]] || found+="${found:+, }$place"
  done
  if [[ -n $found ]]; then printf 'not writable: %s' "$found"; else printf 'the steps above say why'; fi
}
