#!/usr/bin/env bash
# Whether every card that is handed over is with the host, and what of the handover is installed.
# Needs: common, files, lock, handover/places
#
# Gives: cards_away [VMID...] -> AWAY; need_rest [VMID...], is_on_its_way VMID...; find_enabled service|timer -> ENABLED_AS; find_snippets -> SNIPPETS, STORAGE;
#   find_hook VMID -> OPTION, is_our_hook VMID, drop_hook VMID, has_hook VMID, hooked_elsewhere VMID, tell_elsewhere VMID.

# find_enabled service|timer - sets ENABLED_AS: what `systemctl enable` makes of it.
find_enabled() {
  ENABLED_AS=/etc/systemd/system/multi-user.target.wants/homelab-handover.service
  [[ $1 == service ]] || ENABLED_AS=/etc/systemd/system/timers.target.wants/homelab-handover.timer
}

# cards_away [VMID...] - sets AWAY: which cards aren't with the host, in words; those on account of these VMs left out.
cards_away() {
  local file state vm since boot
  AWAY=''
  for file in "$ROOT$HANDOVER"/*.state; do
    [[ -e $file ]] || continue
    find_noted "$file" state
    state=$AS_NOTED
    find_noted "$file" vm
    vm=$AS_NOTED
    find_noted "$file" since
    since=$AS_NOTED
    find_noted "$file" boot
    boot=$AS_NOTED
    [[ -z $vm || " $* " != *" $vm "* || $state == STUCK || $state == DEAD ]] || continue
    # What was noted before the last start of the host tells nothing of now.
    [[ $state != HELD && $boot == "$(of_file "$ROOT/proc/sys/kernel/random/boot_id")" ]] || continue
    file=${file##*/} file=${file%.state}
    case $state in
      VM) state="is with VM $vm" ;;
      STUCK | DEAD) state="is $state after VM $vm" ;;
      *) state="is on its way to or from VM $vm ($state)" ;;
    esac
    printf -v since '%(%F %T)T' "${since:-0}"
    AWAY+="${AWAY:+; }gpus.$file $state since $since"
  done
}

# is_on_its_way VMID... - is a card away on account of one of these?
is_on_its_way() {
  local vmid
  cards_away
  for vmid in "$@"; do [[ $AWAY != *" VM $vmid "* ]] || return 0; done
  return 1
}

# need_rest [VMID...] - as cards_away.
need_rest() {
  cards_away "$@"
  [[ -z $AWAY ]] || die "this host's shared cards with the host" "$AWAY" \
    "NVIDIA's driver and containers can't be changed, verified or given back while one of their cards is away; nothing was changed" \
    "shut that VM down, which gives the card back, then run the same again (STUCK or DEAD: homelab doctor explains it)"
}

# snippets_storages - a line each of storages that are a folder of this host's alone and take hookscripts: name and folder. The one where our script
# lies comes first, then local. One that is for other nodes of the cluster has no volume here, wherever its folder lies.
snippets_storages() {
  local ours='' here path FILES
  here=$(readlink "$ROOT/etc/pve/local" 2>/dev/null) || here=''
  find_layer_files handover
  for path in "${FILES[@]}"; do
    [[ $path != */snippets/"$HOOK_FILE" ]] || ours+="${path%/snippets/"$HOOK_FILE"} "
  done
  awk -v ours=" $ours" -v here="${here##*/}" '
    function told() { if (kind == "dir" && snippets && !shared && !off && !elsewhere && path != "") { rank = index(ours, " " path " ") ? 0 : name == "local" ? 1 : 2; found[rank] = found[rank] name " " path "\n" } }
    /^[a-z]+:/ { told(); kind = $1; sub(/:$/, "", kind); name = $2; path = ""; snippets = shared = off = elsewhere = 0 }
    $1 == "path" { path = $2; sub(/\/+$/, "", path) }
    $1 == "content" { snippets = ("," $2 "," ~ /,snippets,/) }
    $1 == "shared" { shared = ($2 != "0") }
    $1 == "disable" { off = ($2 != "0") }
    $1 == "nodes" { nodes = $0; sub(/^[ \t]*nodes[ \t]+/, "", nodes); gsub(/[ \t;,]+/, ",", nodes); elsewhere = !index("," nodes ",", "," here ",") }
    END { told(); printf "%s%s%s", found[0], found[1], found[2] }' "$ROOT/etc/pve/storage.cfg" 2>/dev/null
}

# find_snippets - sets STORAGE and SNIPPETS: the first of these, and its folder for hookscripts.
find_snippets() {
  local found
  found=$(snippets_storages) || found=''
  read -r STORAGE SNIPPETS <<<"$found"
  [[ -n ${SNIPPETS:-} ]] || die "a storage of this host (a folder) that takes snippets" "none in /etc/pve/storage.cfg does" \
    "a VM names the script that hands it its card by such a storage" \
    "add snippets to the content of one: Datacenter -> Storage -> local -> Edit -> Content; then run \`pulumi up\` again"
  SNIPPETS=$SNIPPETS/snippets
}

# find_hook VMID - sets OPTION: the hookscript that its configuration names. is_our_hook VMID - is it ours?
find_hook() { find_option "$1" hookscript; }

is_our_hook() {
  find_hook "$1"
  [[ $OPTION == *:snippets/$HOOK_FILE ]]
}

drop_hook() { # VMID
  run_logged qm set "$1" --delete hookscript || die "VM $1 without our hookscript" "$OUTPUT" \
    "once the script is gone, a VM that names it doesn't start" "correct what qm says, then run the same again"
  CHANGED=yes
}

# hooked_elsewhere VMID - the node to which a VM was moved that names our hookscript there; nothing: there is none.
hooked_elsewhere() {
  local file node
  [[ ! -e $ROOT/etc/pve/qemu-server/$1.conf ]] || return 0
  for file in "$ROOT"/etc/pve/nodes/*/qemu-server/"$1.conf"; do
    [[ -e $file ]] || continue
    ! grep -qsE "^hookscript: *[^ ]*:snippets/$HOOK_FILE\$" "$file" || { node=${file%/qemu-server/*} && printf '%s' "${node##*/}" && return; }
  done
}

# tell_elsewhere VMID - of such a VM. It is left there: that node may have one of its own by that name.
tell_elsewhere() {
  local node
  node=$(hooked_elsewhere "$1")
  [[ -z $node ]] || {
    log "note: VM $1 is on node $node now, and names homelab's hookscript there: unless that node has it, the VM doesn't start. On $node: \`qm set $1 --delete hookscript\`"
  }
}

# has_hook VMID - does it name our hookscript, by a storage that has it? A VM whose hookscript isn't found doesn't start.
has_hook() {
  local name folder
  is_our_hook "$1" || return 1
  while read -r name folder; do
    [[ $name != "${OPTION%%:*}" ]] || { [[ -n $folder && -x $ROOT$folder/snippets/$HOOK_FILE ]] && return; }
  done < <(snippets_storages)
  return 1
}
