#!/usr/bin/env bash
# The driver that containers share: keys of read_host.sh's answer.
# Needs: nvidia, read/text
#
# Gives: nvidia; nvidia_minors. Variables: PCI.

# The numbers N of /dev/nvidiaN that the host's driver gave to its cards; they need not be in PCI order.
nvidia_minors() {
  local file address separator=
  note_unreadable "$ROOT"/proc/driver/nvidia/gpus/*/information
  printf ',"nvidia_minors":{'
  for file in "$ROOT"/proc/driver/nvidia/gpus/*/information; do
    address=${file%/information} address=${address##*/}
    find_minor "$address"
    [[ -n $NUMBER ]] || continue
    printf '%s"%s":%s' "$separator" "$address" "$NUMBER"
    separator=,
  done
  printf '}'
}

# The driver that containers share, and whether its nodes are there, now and at the next boot.
nvidia() {
  local enabled=false installed=false names=()
  printf ',"nvidia":{"version":'
  find_loaded
  json_string "$LOADED"
  printf ',"trouble":['
  if has_card_of_nvidia; then
    nvidia_trouble
    [[ $HAS_MODULE == no ]] || installed=true
    found_and_next
    printf '],"uvm_trouble":['
    nvidia_uvm_trouble
    found_and_next
    find_unmade
    names=("${UNMADE[@]%% *}")
  else
    printf '],"uvm_trouble":['
  fi
  [[ ! -L $ROOT$NODES_ENABLED ]] || enabled=true
  printf '],"installed":%s,"nodes_enabled":%s,"missing_nodes":' "$installed" "$enabled"
  json_list "${names[@]}"
  printf '}'
}

has_card_of_nvidia() {
  local file vendor
  for file in "$PCI"/*/vendor; do
    vendor=''
    { read -r vendor <"$file" || :; } 2>/dev/null
    [[ $vendor != 0x10de ]] || return 0
  done
  return 1
}

found_and_next() {
  json_string "$FOUND"
  printf ,
  json_string "$NEXT"
}
