#!/usr/bin/env bash
# Reads what is decided upon before a host is changed, and what is verified after its reboot. Changes nothing.
#
# Arguments: GUESTS (yes | no: also list virtual machines and containers, which takes qm and pct a second each),
#   LSPCI (yes | no: also what lspci says), SIGNS (an extended regular expression: lines of the kernel's log that are passed on; empty:
#   the log isn't read), SYSTEMS (`host` and ids of containers whose NVIDIA stack is read, too; separated by
#   spaces), READ_SYSTEM (the script that reads it).
# Output: one JSON object; homelab/host/facts.py models it. Texts of commands are passed on as they are and parsed there.
# Verbs: read_host.

PCI=$ROOT/sys/bus/pci/devices

read_host() {
  find_boot_loader
  printf '{"boot_id":%s,"kernel":%s,"pve":%s,"cpu_vendor":%s' "$(string_of /proc/sys/kernel/random/boot_id)" \
    "$(json_string "$(uname -r)")" "$(json_string "$(pve_version)")" \
    "$(json_string "$(sed -n '/^vendor_id/{s/.*: //p;q}' "$ROOT/proc/cpuinfo")")"
  printf ',"loader":"%s","loader_clues":%s,"missing_tools":%s' "$LOADER" "$(json_string "$LOADER_CLUES")" "$(missing_tools)"
  cmdlines
  iommu
  bound_by_others
  printf ',"modules":%s' "$(modules)"
  printf ',"devices":['
  devices
  printf '],"lspci":%s' "$(json_string "$([[ $LSPCI != yes ]] || within "$ASK_SECONDS" lspci -Dnnk 2>/dev/null)")"
  printf ',"disks":%s' "$(json_string "$(within "$ASK_SECONDS" lsblk -nro NAME,PKNAME,FSTYPE,MOUNTPOINT 2>/dev/null)")"
  vital
  holders
  signs
  measure_boot
  printf ',"boot_free":%s,"largest_initramfs":%s' "$BOOT_FREE" "$LARGEST_INITRAMFS"
  managed
  nvidia_minors
  nvidia
  containers
  ledger
  edits
  systems
  guests
  cluster
  printf '}\n'
}

string_of() { json_string "$(of_file "$ROOT$1")"; } # PATH - its text; empty when it isn't there

pve_version() { # pve-manager/9.1.1/... -> 9.1.1; nothing where this isn't Proxmox VE
  ! command -v pveversion >/dev/null || within "$ASK_SECONDS" pveversion | sed -nE 's#^pve-manager/([^/]+)/.*#\1#p'
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
  local configured='' others='' generated=''
  if is_configurable; then
    configured=$(configured_words)
    others=$(configured_words others)
    [[ $LOADER != grub ]] || has_managed_esps || generated=$(generated_words)
  fi
  printf ',"cmdline":{"running":%s,"configured":%s,"others":%s,"generated":%s}' \
    "$(string_of /proc/cmdline)" "$(json_string "$configured")" "$(json_string "$others")" "$(json_string "$generated")"
}

# The ACPI table says whether the firmware offers an IOMMU: DMAR (Intel) or IVRS (AMD). That one is in use, only groups prove.
iommu() {
  local table tables=() kernel_log
  for table in DMAR IVRS; do
    [[ ! -e $ROOT/sys/firmware/acpi/tables/$table ]] || tables+=("$table")
  done
  kernel_log=$(within "$ASK_SECONDS" dmesg 2>/dev/null | grep -E 'AMD-Vi|DMAR|iommu: Default domain|1:1 IOMMU mapping' |
    head_and_tail 40) || :
  printf ',"iommu":{"tables":%s,"groups":%s,"kernel_log":%s}' "$(json_list "${tables[@]}")" \
    "$(find "$ROOT/sys/kernel/iommu_groups" -mindepth 1 -maxdepth 1 2>/dev/null | wc -l)" "$(json_string "$kernel_log")"
}

# What is wrong with cards or with how the host boots, as the kernel and Proxmox VE's tools say it; what it means is decided elsewhere.
signs() {
  local path code bytes said='' lost=() unsafe=false
  [[ -z $SIGNS ]] || said=$(kernel_says | grep -iE "$SIGNS" | head_and_tail 1000) || :
  for path in "$PCI"/*; do
    code=''
    [[ ! -r $path/class ]] || read -r code <"$path/class"
    [[ $code == 0x03* || $code == 0x12* || $code == 0x0403* ]] || continue
    # Reading a card that is gone can take long; a virtual function has no ids there, but a class.
    bytes=$(within 5 od -An -v -tx1 -N16 "$path/config" 2>/dev/null) || continue
    bytes=${bytes//[[:space:]]/}
    [[ $bytes != ffffffffffffffffffffffffffffffff && $bytes != 0100ffff* ]] || lost+=("${path##*/}")
  done
  [[ $(cat "$ROOT/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts" 2>/dev/null) != Y ]] || unsafe=true
  printf ',"kernel_log":%s,"lost":%s,"unsafe_interrupts":%s,"boot_warnings":%s' "$(json_string "$said")" "$(json_list "${lost[@]}")" \
    "$unsafe" "$(json_string "$(grep '^WARN: ' <<<"$BOOT_STATUS" || :)")"
}

# head_and_tail LINES - of standard input.
head_and_tail() {
  awk -v most="$1" '{ line[NR] = $0 } END { for (i = 1; i <= NR; i++) {
    if (NR <= most || i <= most / 2 || i > NR - most / 2) print line[i]
    else if (i - 1 <= most / 2) print "… " NR - most " lines are left out here …" } }'
}

# What somebody else gives to vfio-pci: ids in modprobe.d, by file (those on the command line are seen there), and files that speak of
# vfio-pci in another way, from which nothing is concluded.
bound_by_others() {
  local file ids all='' files='' mentions=()
  for file in "$ROOT"/etc/modprobe.d/*.conf; do
    [[ -r $file ]] || continue
    ids=$(sed -nE 's/^[[:space:]]*options[[:space:]]+vfio[-_]pci[[:space:]].*\bids=([^[:space:]]+).*/\1/p' "$file")
    [[ -n $ids ]] || continue
    ids=${ids//$'\n'/,}
    all+=${all:+,}$ids
    files+="${files:+,}$(json_string "${file#"$ROOT"}"):$(json_string "$ids")"
  done
  mapfile -t mentions < <(cd "${ROOT:-/}" && grep -rlsE 'vfio[-_]pci' etc/driverctl.d etc/udev/rules.d etc/initramfs-tools/scripts \
    etc/systemd/system etc/rc.local | grep -v '/homelab-' | sed 's#^#/#' | sort)
  printf ',"vfio_ids":%s,"vfio_files":{%s},"vfio_mentions":%s' "$(json_string "$all")" "$files" "$(json_list "${mentions[@]}")"
}

modules() {
  local name found=()
  while read -r name _; do
    case $name in vfio* | nouveau | nvidia* | nova*) found+=("$name") ;; esac
  done <"$ROOT/proc/modules"
  for name in vfio vfio_iommu_type1 vfio_pci; do # built into the kernel, they aren't in /proc/modules
    [[ " ${found[*]} " == *" $name "* || ! -d $ROOT/sys/module/$name ]] || found+=("$name")
  done
  json_list "${found[@]}"
}

# Every PCI function: what it is, what drives it, where it hangs, which disks and network interfaces are behind it.
# Without command substitutions inside the loop: a host has a hundred functions, and each would be a process.
devices() {
  local file target address name link separator='' acs=' ' path vendor device class subsystem_vendor subsystem_device boot_vga flag group
  local sriov_numvfs removable physfn
  declare -A links=() behind=()
  while IFS=' ' read -r file target; do
    links[${file#"$PCI/"}]=$target
  done < <(find "$PCI"/* "$PCI"/*/driver "$PCI"/*/iommu_group "$PCI"/*/physfn -maxdepth 0 -type l -printf '%p %l\n' 2>/dev/null)
  while IFS=' ' read -r name target; do
    [[ $target =~ .*/([0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])/ ]] || continue
    behind[${BASH_REMATCH[1]}]+="${behind[${BASH_REMATCH[1]}]:+ }$name"
  done < <(find "$ROOT"/sys/block/* "$ROOT"/sys/class/net/* -maxdepth 0 -type l -printf '%f %l\n' 2>/dev/null | sort)
  # Before there are groups, the bridges' Access Control Services tell how the kernel is going to draw them.
  [[ -n $(find "$ROOT/sys/kernel/iommu_groups" -mindepth 1 -maxdepth 1 -print -quit 2>/dev/null) ]] || acs=$(functions_with_acs) || :
  for path in "$PCI"/*; do
    address=${path##*/}
    for name in vendor device class subsystem_vendor subsystem_device boot_vga sriov_numvfs removable; do
      printf -v "$name" 0
      [[ ! -r $path/$name ]] || read -r "${name?}" <"$path/$name"
    done
    name=$address/driver
    link=${links[$name]:-}
    name=$address/iommu_group
    group=${links[$name]:-null}
    name=$address/physfn
    physfn=${links[$name]:-}
    # "removable" is what hangs on an external port; "fixed" or "unknown" isn't known to.
    [[ $removable == removable ]] && removable=true || removable=false
    flag=false
    [[ $acs != *" $address "* ]] || flag=true
    printf '%s{"address":"%s","vendor":"%s","device":"%s","subsystem":"%s:%s","class":"%s","boot_vga":%s,"driver":"%s","group":%s,"acs":%s,"path":"%s","behind":' \
      "$separator" "$address" "${vendor#0x}" "${device#0x}" "${subsystem_vendor#0x}" "${subsystem_device#0x}" "${class#0x}" \
      "$boot_vga" "${link##*/}" "${group##*/}" "$flag" "${links[$address]:-}"
    json_string "${behind[$address]:-}" # an interface may have nearly any name
    printf ',"physfn":"%s","vfs":%s,"removable":%s}' "${physfn##*/}" "$sriov_numvfs" "$removable"
    separator=,
  done
}

functions_with_acs() { # " 0000:00:01.0 0000:00:02.0 "
  within "$ASK_SECONDS" lspci -D -vv 2>/dev/null | awk '/^[0-9a-f]/ { address = $1 } /Access Control Services/ { printf " %s", address } END { print " " }'
}

# What we wrote, and what became of it.
managed() {
  local layer path separator=
  printf ',"managed":['
  for layer in iommu vfio nodes; do
    while IFS= read -r path; do
      printf '%s{"layer":"%s","path":%s,"state":"%s"}' "$separator" "$layer" "$(json_string "$path")" "$(file_state "$layer" "$path")"
      separator=,
    done < <(layer_files "$layer")
  done
  # shellcheck disable=SC2046 # kernel versions hold no spaces
  printf '],"stale_initramfs":%s,"rolled_back":%s' "$(json_list $(stale_initramfs))" "$(json_string "$(rolled_back)")"
  printf ',"rolling_back":%s,"judged":%s' "$(is_rolling_back && printf true || printf false)" "$(string_of /var/lib/homelab/judged)"
  printf ',"boot_lacks":%s' "$(noted_boot_lacks)"
}

# The numbers N of /dev/nvidiaN that the host's driver gave to its cards; they need not be in PCI order.
nvidia_minors() {
  local file address minor separator=
  printf ',"nvidia_minors":{'
  for file in "$ROOT"/proc/driver/nvidia/gpus/*/information; do
    minor=$(sed -nE 's/^Device Minor:[[:space:]]*([0-9]+).*/\1/p' "$file" 2>/dev/null) || minor=''
    [[ -n $minor ]] || continue
    address=${file%/information}
    printf '%s"%s":%s' "$separator" "${address##*/}" "$minor"
    separator=,
  done
  printf '}'
}

# The driver that containers share, and whether its nodes are there, now and at the next boot.
nvidia() {
  local trouble='' uvm='' dev='' enabled=false names=()
  if [[ -n $(find "$PCI"/*/vendor -maxdepth 0 -exec grep -lx 0x10de {} + 2>/dev/null) ]]; then
    nvidia_trouble
    trouble="$(json_string "$FOUND"),$(json_string "$NEXT")"
    nvidia_uvm_trouble
    uvm="$(json_string "$FOUND"),$(json_string "$NEXT")"
    mapfile -t names < <(missing_nvidia_nodes)
    dev_trouble
    dev="$(json_string "$FOUND"),$(json_string "$NEXT")"
  fi
  [[ ! -L $ROOT$NODES_ENABLED ]] || enabled=true
  printf ',"nvidia":{"version":%s,"trouble":[%s],"uvm_trouble":[%s],"missing_nodes":%s,"nodes_enabled":%s,"dev_trouble":[%s]}' \
    "$(json_string "$(nvidia_version)")" "$trouble" "$uvm" "$(json_list "${names[@]}")" "$enabled" "$dev"
}

# Containers that were given cards by us, and how they differ from what was set up.
containers() {
  local dir separator='' drift
  printf ',"containers":['
  for dir in "$STATE"/containers/*/; do
    [[ -r $dir/wanted ]] || continue
    CTID=$(basename "$dir")
    { read -r METHOD && read -r MINORS && read -r FUNCTIONS; } <"$dir/wanted"
    mapfile -t drift < <(container_drift)
    printf '%s{"id":%s,"minors":"%s","drift":%s}' "$separator" "$CTID" "$MINORS" "$(json_list "${drift[@]}")"
    separator=,
  done
  printf ']'
}

# Copies of what somebody made of our files (lib/files.sh, keep_edit).
edits() {
  local copies=()
  mapfile -t copies < <(find "$ROOT$EDITS" -type f -printf "$EDITS/%P\n" 2>/dev/null | sort)
  printf ',"edits":%s' "$(json_list "${copies[@]}")"
}

# What was noted of VMs and mappings (ledger.sh): name -> its text.
ledger() {
  local name separator=
  printf ',"ledger":{'
  while IFS= read -r name; do
    printf '%s%s:%s' "$separator" "$(json_string "$name")" "$(string_of "/var/lib/homelab/ledger/$name")"
    separator=,
  done < <(find "$STATE/ledger" -type f ! -name '.*' -printf '%P\n' 2>/dev/null | sort)
  printf '}'
}

# NVIDIA's stack on this host, and in containers that run: each read by a script of its own.
systems() {
  local name text separator=
  printf ',"systems":{'
  for name in $SYSTEMS; do
    printf '%s"%s":' "$separator" "$name"
    separator=,
    if [[ $name == host ]]; then
      text=$(bash -s -- read_system <<<"$READ_SYSTEM")
    elif [[ $(within "$ASK_SECONDS" pct status "$name" 2>/dev/null) == "status: running" ]]; then
      text=$(within 50 pct exec "$name" -- bash -s -- read_system <<<"$READ_SYSTEM")
    else
      printf null && continue
    fi || { printf '\n' && die "container $name read" "$text" "it can't be told whether NVIDIA's stack in it is as it was installed" \
      "see whether \`pct exec $name -- true\` works on the host"; }
    json_string "$(tail -n 1 <<<"$text")"
  done
  printf '}'
}

# Guests that run, and guests that use a PCI card. Container and VM configurations are passed on for homelab/host/facts.py.
guests() {
  local conf kind separator=
  printf ',"guests":{"qm":%s,"pct":%s,"configs":[' "$(json_string "$(list_guests qm)")" "$(json_string "$(list_guests pct)")"
  for conf in "$ROOT"/etc/pve/qemu-server/*.conf "$ROOT"/etc/pve/lxc/*.conf; do
    # Somebody's copy, such as 103-old.conf, is no guest.
    [[ ${conf##*/} =~ ^[1-9][0-9]*\.conf$ && -r $conf ]] || continue
    kind=vm
    [[ $conf != */lxc/* ]] || kind=lxc
    # The part above the first [snapshot] section is the guest as it is.
    printf '%s{"kind":"%s","id":%s,"lines":%s}' "$separator" "$kind" "$(basename "$conf" .conf)" \
      "$(json_string "$(sed '/^\[/,$d' "$conf" | grep -E '^(hostpci[0-9]+|dev[0-9]+|lxc\.mount\.entry|lxc\.cgroup2?\.devices\.(allow|deny)|onboot|name|hostname|machine|bios|memory|balloon|vga|lock|template|parent):' || :)")"
    separator=,
  done
  printf '],"mappings":%s,"reservations":%s}' "$(string_of /etc/pve/mapping/pci.cfg)" "$(string_of /run/qemu-server/pci-id-reservations)"
}

# What Proxmox VE knows of the host's surroundings: where each guest of the cluster is, who may what (no secret is in that file), the
# certificate that its API shows, and its authority's.
cluster() {
  local node='' files='' users='' authority='' certificate=/etc/pve/local/pve-ssl.pem shown=''
  if [[ $GUESTS == yes ]]; then
    # Where Proxmox VE's file system isn't mounted, these aren't there.
    node=$(readlink "$ROOT/etc/pve/local") || node=''
    files=$(cd "$ROOT/etc/pve/nodes" 2>/dev/null && find . -mindepth 3 -maxdepth 3 -name '[1-9]*.conf' -printf '%P\n' | sort) || files=''
    users=$(string_of /etc/pve/user.cfg)
    authority=$(string_of /etc/pve/pve-root-ca.pem)
    [[ ! -e $ROOT/etc/pve/local/pveproxy-ssl.pem ]] || certificate=/etc/pve/local/pveproxy-ssl.pem
    shown=$(string_of "$certificate")
  fi
  printf ',"cluster":{"node":%s,"places":%s,"users":%s,"authority":%s,"certificate":%s}' "$(json_string "${node##*/}")" \
    "$(json_string "$files")" "${users:-\"\"}" "${authority:-\"\"}" "${shown:-\"\"}"
}

list_guests() { # qm | pct
  [[ $GUESTS != yes ]] || ! command -v "$1" >/dev/null || within "$ASK_SECONDS" "$1" list 2>/dev/null || :
}

"$1" </dev/null
exit
