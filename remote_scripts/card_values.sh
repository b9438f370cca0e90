#!/usr/bin/env bash
# How cards are reset and whether they may sleep, where the settings say so: now, and by a udev rule whenever a function appears or gets
# a driver.
# Needs: files, read/devices
#
# Arguments: VALUES (a line each: the function's address, its vendor:device, an attribute in sysfs, the value; the order is kept),
#   GENERATION (no part in what happens).
# Changes: /etc/udev/rules.d/90-homelab-cards.rules; the attributes in /sys. Undone by `revert`: an attribute gets the value back that it had
#   before us, where it still has ours. What it had is in /var/lib/homelab/card-values/ADDRESS=ATTRIBUTE (a slash in it is a colon).
# Verbs: apply, revert, plan (what `apply` would change, as files.sh answers it).

RULES=/etc/udev/rules.d/90-homelab-cards.rules
HAD=/var/lib/homelab/card-values

apply() {
  take_lock
  choose_values
  change
}

revert() {
  VALUES=
  take_lock
  change
}

plan() {
  local address ids attribute value
  PLANNING=yes
  choose_values
  write_rules
  while read -r address ids attribute value; do
    is_it "$address" "$ids" || continue
    [[ $(now "$address" "$attribute") == "$value" ]] || note_planned changed "${PCI#"$ROOT"}/$address/$attribute"
  done <<<"$VALUES"
  answer_planned
}

change() {
  local address ids attribute value
  write_rules
  give_back
  while read -r address ids attribute value; do
    is_it "$address" "$ids" || continue
    keep_had "$address" "$attribute" "$value"
    put_value "$address" "$attribute" "$value"
  done <<<"$VALUES"
  finish
  printf '{"changed":"%s"}\n' "$CHANGED"
}

# is_it ADDRESS IDS - is that function there? What is elsewhere now is another thing, and is left alone.
is_it() {
  [[ -n $1 && -r $PCI/$1/vendor && -r $PCI/$1/device ]] || return 1
  [[ 0x${2%:*} == "$(<"$PCI/$1/vendor")" && 0x${2#*:} == "$(<"$PCI/$1/device")" ]]
}

# now ADDRESS ATTRIBUTE - its value.
now() { [[ ! -r $PCI/$1/$2 ]] || cat "$PCI/$1/$2" 2>/dev/null || :; }

write_rules() {
  local address ids attribute value text='# Written by homelab, which takes it away again (pulumi destroy).'
  [[ -n $VALUES ]] || { drop_file values "$RULES" && return; }
  while read -r address ids attribute value; do
    # A driver that binds may set power/control anew.
    text+=$'\n'"ACTION==\"add|change|bind\", SUBSYSTEM==\"pci\", KERNEL==\"$address\", ATTR{vendor}==\"0x${ids%:*}\", ATTR{device}==\"0x${ids#*:}\", ATTR{$attribute}=\"$value\""
  done <<<"$VALUES"
  put_file values "$RULES" 0644 "$text"
}

# choose_values - VALUES without those that a function has no attribute for; a reset that the kernel doesn't know for the card's picture is
# refused, before anything is written.
choose_values() {
  local address ids attribute value offered code chosen=
  while read -r address ids attribute value; do
    [[ -n $address ]] || continue
    if is_it "$address" "$ids"; then
      offered=$(offered "$address" "$attribute")
      code=$(now "$address" class)
      if [[ $attribute == reset_method && " $offered " != *" $value "* ]]; then
        [[ $code == 0x03* || $code == 0x12* ]] || continue
        die "$address reset by $value" "the kernel offers: ${offered:-nothing}" \
          "what the kernel can't do with this function has no effect" "choose one of these for the card's reset, or take the setting out"
      fi
      [[ -e $PCI/$address/$attribute ]] || continue
    fi
    chosen+=${chosen:+$'\n'}"$address $ids $attribute $value"
  done <<<"$VALUES"
  VALUES=$chosen
}

# offered ADDRESS ATTRIBUTE - what it has, and had before us: a reset that was chosen hides the others.
offered() {
  local record
  record=$ROOT$(record_of "$1" "$2")
  printf '%s ' "$(now "$1" "$2")"
  [[ ! -r $record ]] || head -n 1 "$record"
}

# record_of ADDRESS ATTRIBUTE - where its value of before us is noted.
record_of() { printf '%s/%s=%s' "$HAD" "$1" "${2//\//:}"; }

# keep_had ADDRESS ATTRIBUTE VALUE - notes what it has, once, and what we write.
keep_had() {
  local record had
  record=$(record_of "$1" "$2")
  if [[ -r $ROOT$record ]]; then had=$(head -n 1 "$ROOT$record"); else had=$(now "$1" "$2"); fi
  need_dir "$ROOT$HAD"
  write_atomically "$record" 0600 printf '%s\n%s\n' "$had" "$3"
}

put_value() {
  local found
  [[ $(now "$1" "$2") != "$3" ]] || return 0
  printf '%s' "$3" >"$PCI/$1/$2" 2>/dev/null || :
  found=$(now "$1" "$2")
  if [[ $found != "$3" ]]; then
    VALUES=
    give_back
    die "$1: $2 to be $3" "it is ${found:-not readable}" "the kernel hasn't taken the value; every card has again what it had" \
      "look at \`dmesg | tail\` on the host, or take the setting out"
  fi
  CHANGED=yes
  log "$1: $2 is $3"
}

# give_back - of what was ours and isn't wanted any more: the value that it had, where nobody else has changed it since.
give_back() {
  local record name address attribute had ours
  for record in "$ROOT$HAD"/*; do
    [[ -f $record ]] || continue
    name=${record##*/}
    address=${name%%=*} attribute=${name#*=}
    attribute=${attribute//:/\/}
    ! grep -q "^$address [^ ]* $attribute " <<<"$VALUES" || continue
    { read -r had && read -r ours; } <"$record" || :
    if [[ -e $PCI/$address/$attribute && $(now "$address" "$attribute") == "$ours" ]]; then
      # Of the resets that the kernel found before the card's other functions were there, it takes those back that it finds now.
      printf '%s' "$had" >"$PCI/$address/$attribute" 2>/dev/null || [[ $attribute != reset_method ]] ||
        printf default >"$PCI/$address/$attribute" 2>/dev/null || :
      log "$address: $attribute is $(now "$address" "$attribute") again"
    fi
    remove_file "$HAD/$name"
    CHANGED=yes
  done
  rmdir "$ROOT$HAD" 2>/dev/null || :
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
