#!/usr/bin/env bash
# The words on the kernel command line: what is configured for the next boot, by whom, and what was generated of it.
# configured_words and edit_kernel_cmdline need LOADER (boot.sh).

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
# They are shell files, sourced by grub-mkconfig in this order too.
grub_words() (
  trap - ERR EXIT
  set +eu
  for file in "$ROOT/etc/default/grub" "$ROOT"/etc/default/grub.d/*.cfg; do
    [[ -e $file ]] || continue
    [[ ${1:-} != others || $file != */zz-homelab-*.cfg ]] || continue
    # shellcheck disable=SC1090 # the host's own files
    . "$file" >/dev/null 2>&1
  done
  printf '%s' "$GRUB_CMDLINE_LINUX $GRUB_CMDLINE_LINUX_DEFAULT"
)

# configured_words [others] - what the next boot gets; `others`: what it would get without us. Needs LOADER.
configured_words() {
  local line='' added words
  if [[ $LOADER == grub ]]; then
    grub_words "${1:-}"
    return
  fi
  # Only the first line counts (proxmox-boot-tool's get_first_line), with or without a newline at its end.
  IFS= read -r line <"$ROOT/etc/kernel/cmdline" || true
  if [[ ${1:-} == others ]]; then
    for added in "$STATE"/cmdline/*; do
      [[ -f $added ]] || continue
      read -ra words <"$added" || true
      line=$(without_words "$line" "${words[@]}")
    done
  fi
  printf '%s' "$line"
}

# generated_words - the kernel command line of the first entry of /boot/grub/grub.cfg.
generated_words() {
  [[ -r $ROOT/boot/grub/grub.cfg ]] || return 0
  sed -nE '/^[[:space:]]*linux(efi)?[[:space:]]/{s/^[[:space:]]*linux(efi)?[[:space:]]+[^[:space:]]+[[:space:]]*//p;q}' "$ROOT/boot/grub/grub.cfg"
}

# edit_kernel_cmdline NAME TEXT - puts TEXT (words, or nothing) at the end of /etc/kernel/cmdline's first line, in place of
# what we put there before under this name. The exact text is recorded, so that taking it away leaves every other byte.
edit_kernel_cmdline() {
  local record=/var/lib/homelab/cmdline/$1 new=${2:+ $2} old='' file whole first rest words
  file=$(readlink -f "$ROOT/etc/kernel/cmdline")
  file=${file#"$ROOT"}
  [[ ! -e $ROOT$record ]] || old=$(<"$ROOT$record")
  whole=$(cat "$ROOT$file" && printf x)
  whole=${whole%x}
  first=${whole%%$'\n'*}
  rest=${whole#"$first"}
  [[ $old != "$new" || "$first " != *"$old "* ]] || return 0 # there already, also in the middle
  if [[ -n $old && "$first " == *"$old "* ]]; then
    first="$first "
    first="${first%"$old "*} ${first##*"$old "}"
    first=${first% }
  elif [[ -n $old ]]; then # somebody moved our words
    read -ra words <<<"$old"
    first=$(without_words "$first" "${words[@]}")
  fi
  first+=$new
  remember "$file"
  remember "$record"
  if [[ -n $new ]]; then
    mkdir -p "$ROOT${record%/*}"
    printf '%s\n' "$new" | write_atomically "$record" 0600
  fi
  copy_atomically "$ROOT$file" "$file.homelab-new" # owner and mode as they are
  printf '%s' "$first$rest" >"$ROOT$file.homelab-new"
  sync "$ROOT$file.homelab-new"
  mv -fT "$ROOT$file.homelab-new" "$ROOT$file"
  [[ -n $new ]] || rm -f "$ROOT$record"
  CHANGED=yes
  log "wrote $file"
}
