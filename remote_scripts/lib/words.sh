#!/usr/bin/env bash
# The words on the kernel command line: what is configured for the next boot, by whom, and what was generated of it.
# find_configured and edit_kernel_cmdline take LOADER of boot.sh.
# Needs: files, boot
#
# Gives: without_words TEXT WORD..., has_words TEXT WORD...; find_configured [others] -> CONFIGURED, has_drop_ins; find_generated -> GENERATED;
#   edit_kernel_cmdline NAME TEXT -> CHANGED.

# without_words TEXT WORD... - TEXT without these words, everything else as it stands (also "quoted values").
without_words() {
  local text=" $1 " word
  shift
  for word in "$@"; do
    while [[ $text == *" $word "* ]]; do
      text="${text%%" $word "*} ${text#*" $word "}"
    done
  done
  text=${text# }
  printf '%s' "${text% }"
}

# has_words TEXT WORD... - all of them? An IOMMU word may have more options behind a comma (intel_iommu=on,sm_on).
has_words() {
  local text=" $1 " word
  shift
  for word in "$@"; do
    [[ $text == *" $word "* || ($word == *iommu=* && $text == *" $word,"*) ]] || return 1
  done
}

# grub_words [others] - the words that /etc/default/grub and grub.d give the kernel; `others`: without our drop-ins.
# They are shell files, sourced by grub-mkconfig in this order too. In a subshell alone, whose own these settings are.
grub_words() {
  trap - ERR EXIT
  set +eu
  for file in "$ROOT/etc/default/grub" "$ROOT"/etc/default/grub.d/*.cfg; do
    [[ -e $file ]] || continue
    [[ ${1:-} != others || $file != */zz-homelab-*.cfg ]] || continue
    # shellcheck disable=SC1090 # the host's own files
    . "$file" >/dev/null 2>&1
  done
  printf '%s' "$GRUB_CMDLINE_LINUX $GRUB_CMDLINE_LINUX_DEFAULT"
}

# has_drop_ins - are files of ours among those? Without them GRUB's words are the others' alone.
has_drop_ins() { compgen -G "$ROOT/etc/default/grub.d/zz-homelab-*.cfg" >/dev/null; }

# find_configured [others] - sets CONFIGURED: what the next boot gets; `others`: what it would get without us. Needs LOADER.
find_configured() {
  local line='' added words
  if [[ $LOADER == grub ]]; then
    CONFIGURED=$(grub_words "${1:-}")
    return
  fi
  # Only the first line counts (proxmox-boot-tool's get_first_line), with or without a newline at its end.
  IFS= read -r line <"$ROOT/etc/kernel/cmdline" || true
  if [[ ${1:-} == others ]]; then
    for added in "$STATE"/cmdline/*; do
      [[ -f $added ]] || continue
      read -rd '' -a words <"$added" || true
      line=$(without_words "$line" "${words[@]}")
    done
  fi
  CONFIGURED=$line
}

# find_generated - sets GENERATED: the kernel command line of the first entry of /boot/grub/grub.cfg.
find_generated() {
  local line=''
  GENERATED=''
  [[ -r $ROOT/boot/grub/grub.cfg ]] || return 0
  while IFS= read -r line || [[ -n $line ]]; do
    [[ $line == *linux* && $line =~ ^[[:space:]]*linux(efi)?[[:space:]] ]] || continue
    [[ ! $line =~ ^[[:space:]]*linux(efi)?[[:space:]]+[^[:space:]]+[[:space:]]*(.*)$ ]] || GENERATED=${BASH_REMATCH[2]}
    break
  done <"$ROOT/boot/grub/grub.cfg"
}

# edit_kernel_cmdline NAME TEXT - puts TEXT (words, or nothing) at the end of /etc/kernel/cmdline's first line, in place of
# what we put there before under this name. The exact text is recorded, so that taking it away leaves every other byte. While the
# file changes, the record has a line for each text that may be there, the old and the new; `finish` leaves the new one alone.
edit_kernel_cmdline() {
  local record=/var/lib/homelab/cmdline/$1 new=${2:+ $2} texts=() text all='' file whole first rest
  file=$(readlink -f "$ROOT/etc/kernel/cmdline")
  file=${file#"$ROOT"}
  [[ ! -e $ROOT$record ]] || mapfile -t texts <"$ROOT$record"
  # The longest first: one may be the beginning of another.
  ((${#texts[@]} < 2)) || mapfile -t texts < <(awk '{ print length, $0 }' "$ROOT$record" | sort -rn | sed 's/^[0-9]* //')
  LINE[$1]=$2
  whole=$(cat "$ROOT$file" && printf x)
  whole=${whole%x}
  first=${whole%%$'\n'*}
  rest=${whole#"$first"}
  ! has_text_alone || return 0
  [[ $PLANNING == no ]] || { note_planned changed "$file" && return; }
  about_to_change
  remember "$record" "$file"
  need_dir "$ROOT${record%/*}"
  for text in "${texts[@]}" "$new"; do
    [[ -z $text || $'\n'$all == *$'\n'"$text"$'\n'* ]] || all+=$text$'\n'
  done
  write_atomically "$record" 0600 printf '%s' "$all"
  take_texts_out
  rewrite_atomically "$file" printf '%s' "$first$new$rest"
  CHANGED=yes
  log "wrote $file"
}

# Is `new`, and no other of `texts`, in `first`? In its middle, too. Without a record nothing of ours is there.
has_text_alone() {
  local text noted=no
  if [[ -z $new ]]; then
    ((${#texts[@]} == 0))
    return
  fi
  for text in "${texts[@]}"; do
    [[ $text != "$new" ]] || noted=yes
    [[ "$first " != *"$text "* || "$new " == *"$text "* ]] || return 1
  done
  [[ $noted == yes && "$first " == *"$new "* ]]
}

# take_texts_out - of `first`, the one of `texts` that is there; words of theirs, if somebody has moved these.
take_texts_out() {
  local text words
  for text in "${texts[@]}"; do
    if [[ "$first " == *"$text "* ]]; then
      first="$first "
      first="${first%"$text "*} ${first##*"$text "}"
      first=${first% }
      return 0
    fi
  done
  for text in "${texts[@]}"; do
    read -ra words <<<"$text"
    first=$(without_words "$first" "${words[@]}")
  done
}
