#!/usr/bin/env bash
# What only a reboot of this host can bring. Decided here alone: for the reboot itself, for a preview, and for what looks for drift.
# The answer is the same before and after the boot configuration was written: what counts is what it is going to have. Takes LOADER
# of boot.sh.
# Needs: boot, words, driver, guests, links
#
# Gives: what_is_lacking -> REASONS, PERHAPS, OF_BOOT; name_guests -> GUESTS, MOVES; note_wanted_boot.
#
# Variables: WORDS (of the command line), FUNCTIONS (PCI addresses that must be on vfio-pci), both separated by spaces; DRIVER (NVIDIA's
#   that is to have the other cards: the installed version, or the version or branch that is going to be installed; empty: it doesn't
#   matter), FLAVOUR (open or proprietary, of its modules) and SOURCE (as of nvidia_driver.sh).
# STATE/wanted-boot: what the last reboot was decided by: WORDS, FUNCTIONS, DRIVER and FLAVOUR, a line each, and the words of overrides that
# were ours before and still ran. By it layers/read_host.py finds drift.
WANTED_BOOT=/var/lib/homelab/wanted-boot

# what_is_lacking - sets REASONS: a sentence for each thing; PERHAPS: for each that isn't known before packages are installed; OF_BOOT: how
# many of REASONS, the first ones, are for what we have in the boot configuration.
what_is_lacking() {
  REASONS=() PERHAPS=()
  words_lack
  functions_lack
  OF_BOOT=${#REASONS[@]}
  [[ -z $DRIVER ]] || driver_lacks
}

words_lack() {
  local running next word missing=()
  running=$(<"$ROOT/proc/cmdline")
  for word in $WORDS; do
    has_words "$running" "$word" || missing+=("$word")
  done
  ((${#missing[@]} == 0)) || REASONS+=("${missing[*]} is not on the running kernel's command line")
  # Words of the kinds that we write, running, and neither wanted nor anybody else's.
  find_configured others
  next="$CONFIGURED $WORDS"
  find_noted_words
  for word in $running; do
    case $word in
      amd_iommu=* | intel_iommu=* | iommu=* | homelab.vfio=* | modprobe.blacklist=*) ;;
      # People write these themselves, also at the boot menu: only what was ours is ours to end.
      pcie_acs_override=* | vfio_iommu_type1.allow_unsafe_interrupts=* | initcall_blacklist=sysfb_init) has_words "$NOTED_WORDS" "$word" || continue ;;
      *) continue ;;
    esac
    has_words "$next" "$word" || REASONS+=("$word is no longer wanted")
  done
}

# find_noted_words - sets NOTED_WORDS: what we have wanted on the command line: at the last reboot that was decided, and before, where it still ran then.
find_noted_words() {
  local lines=()
  [[ ! -r $ROOT$WANTED_BOOT ]] || mapfile -t lines <"$ROOT$WANTED_BOOT"
  NOTED_WORDS="${lines[0]-} ${lines[4]-}"
}

# A card that isn't there is nothing that a boot brings; the gates and the verification name it.
functions_lack() {
  local address
  for address in $FUNCTIONS; do
    [[ -e $ROOT/sys/bus/pci/devices/$address ]] || continue
    find_linked "$ROOT/sys/bus/pci/devices/$address/driver"
    [[ $LINKED == vfio-pci ]] || REASONS+=("$address is on ${LINKED:-no driver}, not on vfio-pci")
  done
}

# Another module of NVIDIA's, or nouveau, lets go of a card at a boot alone. One that nothing has is taken without.
driver_lacks() {
  local TARGET=host held
  find_loaded
  if [[ -n $LOADED ]]; then
    if [[ -n $FLAVOUR && $LOADED_FLAVOUR != "$FLAVOUR" ]]; then
      REASONS+=("NVIDIA's $LOADED_FLAVOUR modules are loaded, not the $FLAVOUR ones")
    elif ! fits "$LOADED"; then
      REASONS+=("NVIDIA's driver $LOADED is loaded, not $DRIVER")
    elif [[ $LOADED == "$DRIVER" ]]; then
      : # that one, to the last digit
    elif read_driver_note && is_wanted; then
      [[ $LOADED == "$VERSION" ]] || REASONS+=("NVIDIA's driver $LOADED is loaded, and $VERSION is installed")
    else
      PERHAPS+=("what is installed is another version of branch $DRIVER than $LOADED, which is loaded")
    fi
  fi
  find_held
  for held in "${HELD_CARDS[@]}"; do
    [[ " $FUNCTIONS " == *" ${held%% *} "* ]] || REASONS+=("${held%% *} is on ${held#* }, not on NVIDIA's driver")
  done
}

# name_guests - sets GUESTS: what a reboot stops, for people: `VM 103 (Sandbox), container 901 (ai-lab)`; MOVES: the same of those that are on other
# nodes meanwhile (LEAVING: `vm:103 ct:200 `).
name_guests() {
  GUESTS='' MOVES=''
  if find_guests vm; then name_each vm VM; else GUESTS=$(unlisted VMs qm); fi
  if find_guests lxc; then name_each ct container; else GUESTS+=$(unlisted containers pct); fi
  GUESTS=${GUESTS%, } MOVES=${MOVES%, }
}

unlisted() { printf '%s' "whatever $1 are running (\`$2 list\` gave no answer), "; } # KINDS PROGRAM

name_each() { # KIND WORD
  local guest id name
  for guest in "${GUESTS_HERE[@]}"; do
    read -r id name <<<"$guest"
    if [[ " ${LEAVING:-} " == *" $1:$id "* ]]; then MOVES+="$2 $id ($name), "; else GUESTS+="$2 $id ($name), "; fi
  done
}

# note_wanted_boot - so that it is known on this host what its boot is to have.
note_wanted_boot() {
  local word running still=()
  find_noted_words
  running=$(<"$ROOT/proc/cmdline")
  for word in $NOTED_WORDS; do
    case $word in
      pcie_acs_override=* | vfio_iommu_type1.allow_unsafe_interrupts=* | initcall_blacklist=sysfb_init) ! has_words "$running" "$word" || still+=("$word") ;;
    esac
  done
  need_dir "$STATE"
  write_atomically "$WANTED_BOOT" 0600 printf '%s\n' "$WORDS" "$FUNCTIONS" "$DRIVER" "$FLAVOUR" "${still[*]}"
}
