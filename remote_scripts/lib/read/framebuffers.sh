#!/usr/bin/env bash
# The kernel's own picture within the memory of graphics cards: a key of read_host.sh's answer.
# Needs: common, lines, read/devices, read/text
#
# Gives: framebuffers.

# Of each card, what of the kernel's console lies in its memory, as /proc/iomem has it: BOOTFB, and who draws into it. By the ranges, since the
# one line isn't always below the other. To others than root the file shows zeros.
framebuffers() {
  local line path code from to range first last what held=() found separator=''
  printf ',"framebuffers":{'
  note_unreadable "$ROOT/proc/iomem"
  read_lines "$ROOT/proc/iomem"
  for line in "${READ_LINES[@]}"; do
    [[ $line =~ ^\ *([0-9a-f]{1,15})-([0-9a-f]{1,15})\ :\ (BOOTFB|efifb|vesafb|simplefb|simple-framebuffer|simpledrm|efidrm|vesadrm)$ ]] || continue
    ((16#${BASH_REMATCH[2]} == 0)) || held+=("${BASH_REMATCH[1]} ${BASH_REMATCH[2]} ${BASH_REMATCH[3]}")
  done
  for path in "$PCI"/*; do
    ((${#held[@]} > 0)) || break
    code=
    [[ ! -r $path/class ]] || read -r code <"$path/class" || :
    [[ ($code == 0x03* || $code == 0x12*) && -r $path/resource ]] || continue
    found=()
    read_lines "$path/resource"
    for line in "${READ_LINES[@]}"; do
      read -r from to _ <<<"$line"
      [[ $from =~ ^0x[0-9a-f]{1,16}$ && $to =~ ^0x0*[1-9a-f][0-9a-f]{0,14}$ ]] || continue
      for range in "${held[@]}"; do
        read -r first last what <<<"$range"
        ((16#$first <= to && 16#$last >= from)) || continue
        [[ " ${found[*]} " == *" $what "* ]] || found+=("$what")
      done
    done
    ((${#found[@]} > 0)) || continue
    printf '%s"%s":' "$separator" "${path##*/}"
    json_list "${found[@]}"
    separator=,
  done
  printf '}'
}
