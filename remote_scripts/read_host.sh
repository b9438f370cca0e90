#!/usr/bin/env bash
# Reads what is decided upon before a host is changed, and what is verified after its reboot. Changes nothing.
# Needs: boot, kernel, lines, words, read/text, read/devices, read/card_states, read/framebuffers, read/iommu, read/drm, read/signs, read/guests, read/ours, handover/rest, read/nvidia, carriers, carriers/holders
#
# Arguments: GUESTS (yes | no: also list virtual machines and containers, which takes qm and pct a second each),
#   LSPCI (yes | no: also what lspci says), ACS (yes | no: also which devices isolate what is behind them, where the host has IOMMU
#   groups already), SIGNS (an extended regular expression: lines of the kernel's log that are passed on; empty: the log isn't read),
#   SYSTEMS (`host` and ids of containers whose NVIDIA stack is read, too; separated by spaces), READ_SYSTEM (the script that reads it).
# Output: one JSON object; homelab/host/facts.py models it. Texts of commands are passed on as they are and parsed there.
# Verbs: read_host.

read_host() {
  local lines=()
  find_boot_loader
  printf '{"boot_id":'
  string_of /proc/sys/kernel/random/boot_id
  find_running
  json_entry kernel "$RUNNING"
  pve_version
  package_versions
  cpu_vendor
  json_entry loader "$LOADER"
  json_entry loader_clues "$LOADER_CLUES"
  printf ',"missing_tools":'
  missing_tools
  cmdlines
  iommu
  bound_by_others
  printf ',"modules":'
  modules
  printf ',"devices":['
  devices
  printf ']'
  card_states
  framebuffers
  ask_lspci
  json_entry disks "$(exec_within "$ASK_SECONDS" lsblk -nro NAME,PKNAME,FSTYPE,MOUNTPOINT 2>/dev/null)"
  vital
  named_cards
  holders
  signs
  measure_boot
  printf ',"boot_free":%s,"largest_initramfs":%s' "$BOOT_FREE" "$LARGEST_INITRAMFS"
  managed
  drm
  nvidia_minors
  nvidia
  containers
  ledger
  edits
  kept_scripts
  handed_over
  turned_away
  set_aside
  systems
  guests
  cluster
  unreadable
  printf '}\n'
}

pve_version() { # pve-manager/9.1.1/... -> 9.1.1; nothing where this isn't Proxmox VE; `unknown` where it gives no answer
  local text found=''
  ! command -v pveversion >/dev/null || { found=unknown && text=$(exec_within "$ASK_SECONDS" pveversion); } || :
  [[ ! $'\n'${text:-} =~ $'\n'"pve-manager/"([^/$'\n']+)/ ]] || found=${BASH_REMATCH[1]}
  json_entry pve "$found"
}

cpu_vendor() {
  find_first "$ROOT/proc/cpuinfo" '^vendor_id.*: (.*)$'
  json_entry cpu_vendor "$FIRST"
}

# Versions of the packages whose age decides which options of cards Proxmox VE knows, and what runs in containers.
package_versions() {
  local name version state separator=''
  printf ',"packages":{'
  while read -r name state version; do
    [[ $state == installed && -n $version ]] || continue
    printf '%s"%s":' "$separator" "$name"
    json_string "$version"
    separator=,
  done < <(dpkg-query -W -f='${Package} ${db:Status-Status} ${Version}\n' qemu-server libpve-guest-common-perl lxc-pve 2>/dev/null)
  printf '}'
}

# ask_lspci - sets `lines` of read_host; what it says of drivers as well goes into the answer where LSPCI wants it.
ask_lspci() {
  local IFS=$'\n' how=-Dnn TEXT=''
  [[ $LSPCI != yes ]] || how=-Dnnk
  mapfile -t lines < <(exec_within "$ASK_SECONDS" lspci "$how" 2>/dev/null)
  [[ $LSPCI != yes ]] || cut_end "${lines[*]}"
  json_entry lspci "$TEXT"
}

# Lines of lspci about what makes a card (classes 03 and 12), with the names that this host's pci.ids has.
named_cards() {
  local IFS=$'\n' line named=() card='^[^[]*\[(03|12)[0-9a-f]{2}\]: '
  for line in "${lines[@]}"; do [[ ! $line =~ $card ]] || named+=("$line"); done
  json_entry named "${named[*]}"
}

missing_tools() {
  local tool tools=(update-initramfs lspci flock systemctl sha256sum) missing=()
  if has_managed_esps; then tools+=(proxmox-boot-tool); else tools+=(update-grub); fi
  for tool in "${tools[@]}"; do
    command -v "$tool" >/dev/null || missing+=("$tool")
  done
  json_list "${missing[@]}"
}

cmdlines() {
  local TEXT configured='' others='' generated=''
  if is_configurable; then
    find_configured
    configured=$CONFIGURED
    # The host's own files may ask programs: they are read once more only where that tells more.
    if [[ $LOADER != grub ]] || has_drop_ins; then find_configured others; fi
    others=$CONFIGURED
    if [[ $LOADER == grub ]] && ! has_managed_esps; then
      find_generated
      generated=$GENERATED
    fi
  fi
  read_text "$ROOT/proc/cmdline"
  # Where somebody overrides what devices say of Access Control Services, the groups of the next boot depend on it.
  [[ "$TEXT $configured" != *pcie_acs_override=* ]] || ACS=yes
  printf ',"cmdline":{"running":'
  string_of /proc/cmdline
  json_entry configured "$configured"
  json_entry others "$others"
  json_entry generated "$generated"
  printf '}'
}

# NVIDIA's stack on this host, and in containers that run: each read by a script of its own.
systems() {
  local name text status separator=
  printf ',"systems":{'
  for name in $SYSTEMS; do
    printf '%s"%s":' "$separator" "$name"
    separator=,
    if [[ $name == host ]]; then
      text=$(bash -s -- read_system <<<"$READ_SYSTEM")
    else
      find_power pct "$name"
      [[ $POWER_NOW =~ ^(on|unknown)$ ]] || { printf null && continue; }
      text=$POWER_SAID
      if [[ $POWER_NOW == on ]]; then
        answer_of 50 1048576 pct exec "$name" -- bash -s -- read_system <<<"$READ_SYSTEM" && status=0 || status=$?
        text=$ANSWER && ((status == 0))
      else
        false
      fi
    fi || { printf '\n' && die "container $name read" "$text" "it can't be told whether NVIDIA's stack in it is as it was installed" \
      "see whether \`pct exec $name -- true\` works on the host"; }
    find_last "$text"
    json_string "$LAST"
  done
  printf '}'
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
