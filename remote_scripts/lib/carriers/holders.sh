#!/usr/bin/env bash
# Who has a graphics card open.
# Needs: common, nvidia, links, carriers/found
#
# Gives: holders, as a key of read_host.sh's answer.

holders() {
  local folder node link name file fb separator='' pid address bound=''
  declare -A cards=() opened=()
  for file in "$ROOT"/proc/driver/nvidia/gpus/*/information; do
    [[ -r $file ]] || continue
    file=${file%/information}
    find_minor "${file##*/}"
    cards[nvidia$NUMBER]=${file##*/}
  done
  for link in "$ROOT"/sys/class/drm/card[0-9]* "$ROOT"/sys/class/drm/renderD[0-9]*; do
    [[ -e $link/dev || -e $link/device ]] || continue
    find_folder "$link" || continue
    find_deepest "$FOLDER"
    [[ -z $DEEPEST ]] || cards[${link##*/}]=$DEEPEST
  done
  # Without a node of a card there is nothing to have open.
  ((${#cards[@]} == 0)) || while IFS=' ' read -r folder node; do
    pid=${folder%/fd} pid=${pid##*/}
    address=${cards[${node##*/}]:-}
    [[ -n $address && $pid != "$$" && " ${opened[$pid]:-} " != *" $address "* ]] || continue
    opened[$pid]+="${opened[$pid]:+ }$address"
  done < <(find "$ROOT"/proc/[0-9]*/fd -maxdepth 1 \( -lname '/dev/nvidia[0-9]*' -o -lname '/dev/dri/*' \) -printf '%h %l\n' 2>/dev/null)
  printf ',"holders":['
  for pid in "${!opened[@]}"; do
    name=$(cat "$ROOT/proc/$pid/comm" 2>/dev/null) || continue # it has ended meanwhile
    # shellcheck disable=SC2086 # addresses hold no spaces
    printf '%s{"pid":%s,"name":%s,"devices":%s}' "$separator" "$pid" "$(json_string "$name")" "$(json_list ${opened[$pid]})"
    separator=,
  done
  { read -r bound <"$ROOT/sys/class/vtconsole/vtcon1/bind"; } 2>/dev/null || :
  if [[ $bound == *1* ]]; then
    for fb in "$ROOT"/sys/class/graphics/fb[0-9]*; do
      [[ -e $fb ]] || continue
      find_folder "$fb" || continue
      find_deepest "$FOLDER"
      [[ -n $DEEPEST ]] || continue
      printf '%s{"pid":0,"name":"the text console (%s)","devices":["%s"]}' "$separator" "${fb##*/}" "$DEEPEST"
      separator=,
    done
  fi
  printf ']'
}
