#!/usr/bin/env bash
# What the test VM has seen, by what it said on its console; held against the cards on the host.
# Needs: files, lines
#
# Gives: read_console -> SEEN; compare -> GUEST. Variables: FUNCTIONS, FOLDER, TIMEOUT, MARK, PCI of passthrough_test.sh.

# read_console - sets SEEN: address in the guest -> vendor:device class BAR...
read_console() {
  local mark address rest count=''
  declare -gA SEEN=()
  [[ -r $ROOT$FOLDER/console ]] || die "what the test VM has said on its console" "no $FOLDER/console" \
    "only the VM knows what it sees" "boot what \`build\` has made with -serial file:$FOLDER/console"
  while read -r mark address rest; do
    [[ $mark == "$MARK" ]] || continue
    case $address in
      BEGIN) SEEN=() ;;
      END) count=$rest ;;
      *) SEEN[$address]=$rest ;;
    esac
  done < <(tr -d '\r' <"$ROOT$FOLDER/console")
  [[ -n $count && $count == "${#SEEN[@]}" ]] || die "the list of PCI functions on the test VM's console, whole, within $TIMEOUT s" \
    "$(end_of_console)" "the VM started, but its kernel or its /init didn't get that far: with the card it may hang" \
    "see \`dmesg | tail\` on the host; a slow host may need a longer time"
}

end_of_console() {
  local text
  text=$(tail -n 12 "$ROOT$FOLDER/console" | tr -cd '[:print:]\n')
  if [[ -n ${text//[[:space:]]/} ]]; then
    printf 'it ends with:\n%s' "$text"
  else
    printf 'nothing came on the console'
  fi
}

# memory_bars ADDRESS - index:bytes of the memory BARs (IORESOURCE_MEM, 0x200) that it has on the host.
memory_bars() {
  local line start end flags index=0
  read_lines "$PCI/$1/resource"
  for line in "${READ_LINES[@]:0:6}"; do
    read -r start end flags <<<"$line"
    ((! (flags & 0x200) || start == 0)) || printf '%s:%s\n' "$index" "$((end - start + 1))"
    index=$((index + 1))
  done
}

# compare - sets GUEST: address on the host -> address in the guest, whose buses have numbers of their own. Functions with
# the same ids are told apart by their order, which hostpci keeps.
compare() {
  local function address wanted guest bar bars problems=() addresses
  declare -gA GUEST=()
  declare -A taken=()
  mapfile -t addresses < <(printf '%s\n' "${!SEEN[@]}" | sort)
  for function in $FUNCTIONS; do
    address=${function%%=*} wanted=${function#*=}
    for guest in "${addresses[@]}"; do
      [[ -z ${taken[$guest]:-} && ${SEEN[$guest]} == "$wanted "* ]] || continue
      GUEST[$address]=$guest taken[$guest]=yes
      break
    done
  done
  for function in $FUNCTIONS; do
    address=${function%%=*} wanted=${function#*=} guest=${GUEST[${function%%=*}]:-}
    if [[ -z $guest ]]; then
      find_in_its_place "$address"
      problems+=("$address ($wanted): $FOUND")
      continue
    fi
    read -r _ _ bars <<<"${SEEN[$guest]}"
    while read -r bar; do
      [[ " $bars" == *" $bar:"* ]] || problems+=("$address ($wanted): BAR ${bar%:*} of ${bar#*:} bytes has no address in the VM")
    done < <(memory_bars "$address")
  done
  ((${#problems[@]} == 0)) || die "every function of the card in the test VM, with its ids and memory BARs: $FUNCTIONS" \
    "$(printf '%s\n' "${problems[@]}")" "a VM that is given this card could not use it" \
    "see \`dmesg | grep -iE 'vfio|BAR'\` on the host; for BARs of many GiB, \"Above 4G decoding\" in its firmware"
}

# find_in_its_place ADDRESS - sets FOUND: what the guest has at that number of a slot behind a port, if nobody asked for it.
find_in_its_place() {
  local guest
  FOUND='is not in the VM'
  for guest in "${addresses[@]}"; do
    [[ ${guest##*.} == "${1##*.}" && $guest != 0000:00:* && -z ${taken[$guest]:-} ]] || continue
    case ${SEEN[$guest]} in
      1af4:* | 1b36:* | *:*" 0604"*) ;; # QEMU's own: virtio, its bridges
      *)
        taken[$guest]=yes
        FOUND="at $guest in the VM there is ${SEEN[$guest]%% *} instead"
        return
        ;;
    esac
  done
}
