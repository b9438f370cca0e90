#!/usr/bin/env bash
# The nodes that the kernel has for graphics cards: a key of read_host.sh's answer.
# Needs: common, lines, container/card_nodes, container/service, links, read/signs
#
# Gives: drm. Variables: PCI.

# Of every card with a driver that serves it: names of its nodes in /dev/dri, and whether /dev/kfd is about it, too (`drm_render_minor` in
# the topology). Of Intel's and AMD's display functions without a node for computing: what keeps the driver away, and what it said.
drm() {
  local path address separator='' kfd=' ' value class card render has trouble drivers
  for path in "$ROOT"/sys/class/kfd/kfd/topology/nodes/*/properties; do
    find_first "$path" '^drm_render_minor[[:space:]]+(.*)$'
    kfd+="$FIRST "
  done
  printf ',"drm":{'
  for path in "$PCI"/*; do
    [[ -r $path/class ]] || continue
    read -r class <"$path/class"
    [[ -d $path/drm || $class == 0x03* || $class == 0x12* ]] || continue
    address=${path##*/} trouble='' has=false
    NODE='' && { drm_node "$address" card || :; } && card=$NODE
    { drm_node "$address" renderD || :; } && render=$NODE
    [[ -z $render || ! -e $ROOT/dev/kfd || $kfd != *" ${render#renderD} "* ]] || has=true
    if [[ -z $render && $class == 0x03* && ! -e $path/physfn ]] && read -r value <"$path/vendor"; then
      case $value in 0x8086) drivers='i915|xe' ;; 0x1002) drivers='amdgpu|radeon' ;; *) drivers='' ;; esac
      find_linked "$path/driver"
      if [[ -n $drivers && $LINKED != vfio-pci ]]; then
        read_kernel_log
        trouble=$(without_render "$address" "${LINKED:-$drivers}")
      fi
    fi
    [[ -n $card$render$trouble ]] || continue
    printf '%s"%s":{"card":"%s","render":"%s","kfd":%s' "$separator" "$address" "$card" "$render" "$has"
    json_entry trouble "$trouble"
    printf '}'
    separator=,
  done
  [[ -L $ROOT$CARDS_ENABLED ]] && has=true || has=false
  printf '},"cards_enabled":%s' "$has"
}

# without_render ADDRESS DRIVERS - lines of modprobe.d and of the kernel's log about these (a|b), or about the one that has the card. A word
# about firmware alone is no failure: drivers say it when all is well, too.
without_render() {
  local TEXT lines
  grep -HsE "^[[:space:]]*(blacklist|install)[[:space:]]+($2)([[:space:]]|\$)" "$ROOT"/etc/modprobe.d/*.conf | head -n 4 | sed "s#^$ROOT##" || :
  mapfile -t lines < <(kernel_says | grep -iE "($2) .*$1|firmware.*($2)/" | grep -iE 'fatal|fail|error|not found|[ (]-2([^0-9.]|$)' || :)
  head_and_tail 4 "${lines[@]}"
  printf '%s\n' "$TEXT"
}
