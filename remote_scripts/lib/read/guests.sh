#!/usr/bin/env bash
# Guests, and what Proxmox VE knows of the host's surroundings: keys of read_host.sh's answer.
# Needs: common, read/text, container/device_lines, guests, lines, links
#
# Gives: guests; cluster. Variables: GUESTS (yes | no).

# running - `"running":[103,901],"unlisted":["vm"]`: what runs, and the kinds whose list didn't come.
running() {
  local kind guest ids='' unlisted=()
  for kind in vm lxc; do
    [[ $GUESTS == yes ]] || break
    if find_guests "$kind"; then
      for guest in "${GUESTS_HERE[@]}"; do
        ids+=,${guest%% *}
        running+=("$kind ${guest%% *}")
      done
    else
      unlisted+=("$kind")
    fi
  done
  printf '"running":[%s],"unlisted":' "${ids#,}"
  json_list "${unlisted[@]}"
}

# Guests that run, and guests that use a PCI card. Lines of their configurations are passed on for homelab/host/facts.py.
guests() {
  local conf kind lines line all id section separator='' confs=() running=()
  local option='^(hostpci[0-9]+|onboot|name|ostype|machine|bios|memory|balloon|vga|lock|template|parent|smbios1|meta|delete|(ide|sata|scsi|virtio)[0-9]+):'
  printf ',"guests":{'
  running
  printf ',"configs":['
  for conf in "$ROOT"/etc/pve/qemu-server/*.conf "$ROOT"/etc/pve/lxc/*.conf; do
    # Somebody's copy, such as 103-old.conf, is no guest.
    [[ ! ${conf##*/} =~ ^[1-9][0-9]*\.conf$ ]] || confs+=("$conf")
  done
  note_unreadable "${confs[@]}"
  need_those_that_run
  for conf in "${confs[@]}"; do
    [[ -f $conf ]] || continue
    ! is_unreadable "${conf#"$ROOT"}" || continue
    id=${conf##*/}
    if [[ $conf == */lxc/* ]]; then
      kind=lxc
      # Bash says to the log that it leaves out a zero byte.
      if ! { lines=$(device_lines "$conf" 2>/dev/null); } 2>/dev/null; then
        [[ ! -e $conf ]] || not_whole "${conf#"$ROOT"}" "grep can't read it"
        continue
      fi
    else
      kind=vm lines='' section='' all=()
      { mapfile -t all <"$conf"; } 2>/dev/null || : # gone meanwhile
      for line in "${all[@]}"; do
        # Above the first section is the VM as it is; [PENDING] is what it gets at its next start, each other section a snapshot.
        if [[ $line == '['* ]]; then
          section=snapshot
          [[ ! ${line^^} =~ ^'[PENDING]'[[:space:]]*$ ]] || section='[PENDING]'
        elif [[ $section != snapshot && $line =~ $option ]]; then
          lines+="${lines:+$'\n'}${section:+$section$'\n'}$line"
          section=''
        fi
      done
    fi
    need_room "${conf#"$ROOT"}" "$lines"
    printf '%s{"kind":"%s","id":%s' "$separator" "$kind" "${id%.conf}"
    json_entry lines "$lines"
    printf '}'
    separator=,
  done
  printf '],"mappings":'
  needed_string /etc/pve/mapping/pci.cfg
  printf ',"reservations":'
  needed_string /run/qemu-server/pci-id-reservations
  printf '}'
}

# need_those_that_run - each guest of `running` has its configuration. Where Proxmox VE's file system isn't mounted, none has, and nothing else would tell of it.
need_those_that_run() {
  local guest folder
  for guest in "${running[@]}"; do
    [[ $guest == vm* ]] && folder=/etc/pve/qemu-server || folder=/etc/pve/lxc
    [[ -e $ROOT$folder/${guest#* }.conf ]] || not_whole "$folder/${guest#* }.conf" "it isn't there, and that guest runs"
  done
  [[ $GUESTS == yes && -d $ROOT/etc/pve ]] && command -v pveversion >/dev/null || return 0
  [[ -d $ROOT/etc/pve/qemu-server || -d $ROOT/etc/pve/lxc ]] || not_whole "/etc/pve" "it has no guests' folders, as where Proxmox VE's file system isn't mounted"
}

# has_quorum - may /etc/pve be written? A host that is alone always may; of a node whose pvecm doesn't answer it isn't known.
has_quorum() {
  local text
  [[ $GUESTS == yes && -e $ROOT/etc/pve/corosync.conf ]] || return 0
  text=$(exec_within "$ASK_SECONDS" pvecm status 2>/dev/null) || : # it ends with 2 where there is none
  [[ $'\n'$text == *$'\n'"Quorate:"* ]] || not_whole "/etc/pve" "\`pvecm status\` doesn't say whether this node has a quorum"
  [[ ! $'\n'$text =~ $'\n'"Quorate:"\ +No ]]
}

# What Proxmox VE knows of the host's surroundings: where each guest of the cluster is, who may what (no secret is in that file), the
# certificate that its API shows, and its authority's.
cluster() {
  local node='' file where='' name='' certificate=/etc/pve/local/pve-ssl.pem
  printf ',"cluster":{'
  if [[ $GUESTS == yes ]]; then
    # Where Proxmox VE's file system isn't mounted, these aren't there.
    find_linked "$ROOT/etc/pve/local"
    node=$LINKED
    for file in "$ROOT"/etc/pve/nodes/*/*/[1-9]*.conf; do
      [[ ! -e $file && ! -L $file ]] || where+=${where:+$'\n'}${file#"$ROOT/etc/pve/nodes/"}
    done
    find_first "$ROOT/etc/pve/corosync.conf" '^ *cluster_name: *(.*)$'
    name=$FIRST
    [[ ! -e $ROOT/etc/pve/local/pveproxy-ssl.pem ]] || certificate=/etc/pve/local/pveproxy-ssl.pem
    printf '"users":'
    string_of /etc/pve/user.cfg
    printf ',"authority":'
    string_of /etc/pve/pve-root-ca.pem
    printf ',"certificate":'
    string_of "$certificate"
  else
    printf '"users":"","authority":"","certificate":""'
  fi
  has_quorum && printf ',"quorate":true' || printf ',"quorate":false'
  json_entry node "$node"
  json_entry name "$name"
  json_entry places "$where"
  ha_files
  printf '}'
}

# What the HA manager goes by. Nothing where it has no service.
ha_files() {
  local key file separator=''
  [[ $GUESTS == yes ]] || return 0
  note_unreadable "$ROOT/etc/pve/ha/resources.cfg"
  [[ -s $ROOT/etc/pve/ha/resources.cfg ]] || return 0
  printf ',"ha":{'
  for key in resources=resources.cfg groups=groups.cfg rules=rules.cfg status=manager_status; do
    file=${key#*=} key=${key%=*}
    printf '%s"%s":' "$separator" "$key"
    needed_string "/etc/pve/ha/$file"
    separator=,
  done
  printf '}'
}
