#!/usr/bin/env bash
# How cards' functions can be reset, how they sleep, and whether they are divided among guests: a key of read_host.sh's answer.
# Needs: text, files/atomic, read/devices
#
# Gives: card_states; lost_values.

# Of every function that may belong to a card. Without command substitutions inside the loop, as in `devices`. `reset`: null where the
# kernel has no such file (before Linux 5.15, or no way to reset it). `had`: what `revert` of layers/card_values.py gives back.
card_states() {
  local path code file value had record before ours separator=
  printf ',"card_states":{'
  for path in "$PCI"/*; do
    code=
    [[ ! -r $path/class ]] || read -r code <"$path/class" || :
    case $code in 0x03* | 0x12* | 0x0403* | 0x0480* | 0x0c03* | 0x0c80* | 0x1080*) ;; *) continue ;; esac
    printf '%s"%s":{"divided":' "$separator" "${path##*/}"
    separator=,
    if [[ -d $path/nvidia ]]; then
      printf '"vgpu"'
    elif [[ -d $path/mdev_supported_types ]]; then
      printf '"mdev"'
    else
      printf '""'
    fi
    for file in reset_method d3cold_allowed power/control power_state; do
      printf ',"%s":' "${file#power/}"
      value=
      if [[ -r $path/$file ]] && { read -r value || [[ $file == reset_method ]]; } 2>/dev/null <"$path/$file"; then
        json_string "$value"
      else
        printf null
      fi
    done
    printf ',"had":{'
    had=
    for file in reset_method d3cold_allowed power/control; do
      record=$STATE/card-values/${path##*/}=${file//\//:}
      [[ -f $record && -r $path/$file ]] || continue
      { read -r before && read -r ours; } <"$record" || continue
      { read -r value <"$path/$file" || :; } 2>/dev/null
      [[ $value == "$ours" ]] || continue
      printf '%s"%s":' "$had" "${file#power/}"
      json_string "$before"
      had=,
    done
    printf '}}'
  done
  printf '}'
  printf ',"lost_values":'
  lost_values
  # The program of NVIDIA's licensed vGPU driver that looks after its guests.
  [[ -e $ROOT/usr/bin/nvidia-vgpu-mgr ]] && printf ',"vgpu_manager":true' || printf ',"vgpu_manager":false'
}

# lost_values - what layers/card_values.py has set and somebody has changed since, as a JSON list. A function that isn't there is not its business.
lost_values() {
  local record name attribute path value ours lost=()
  for record in "$STATE"/card-values/*=*; do
    [[ -f $record ]] || continue
    name=${record##*/}
    attribute=${name#*=}
    path=$PCI/${name%%=*}/${attribute//:/\/}
    { read -r _ && read -r ours; } <"$record" || continue
    [[ -r $path ]] || continue
    value=
    { read -r value <"$path" || :; } 2>/dev/null
    [[ $value == "$ours" ]] || lost+=("${attribute//:/\/} of ${name%%=*} is $value, not $ours")
  done
  json_list "${lost[@]}"
}
