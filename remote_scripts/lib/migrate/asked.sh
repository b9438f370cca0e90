#!/usr/bin/env bash
# What Proxmox VE says of the cluster's nodes and of the VMs on them, for those that are to move.
# Needs: lock, ha, away
#
# Gives: api_says PATH PROGRAM ARGUMENT...; rooms_beside NODE SERVICES; running_vms NODE; migration_says NODE VMID -> RUNS, ALLOWED, STAYS; guest_says NODE VMID -> GUEST_LOCK, QMP;
#   is_well NODE VMID; nodes_in_maintenance; place_of VMID; why_unsaid PATH.
#
# For an answer of Proxmox VE, in seconds: what is asked of another node goes over SSH, and a small processor takes long to start Perl.
PVESH_SECONDS=60

# api_says PATH PROGRAM ARGUMENT... - what Proxmox VE says of a path, options behind it, as $said of a program in Perl.
api_says() {
  # shellcheck disable=SC2016,SC2086 # Perl's variables; several words
  within "$PVESH_SECONDS" pvesh get $1 --output-format json 2>/dev/null |
    perl -MJSON::PP -e 'local $/; our $said = decode_json(<STDIN>); '"$2" -- "${@:3}" 2>/dev/null
}

# rooms_beside NODE SERVICES - a line `NODE BYTES` for each other node that is online: the memory that it has left. What runs there may take all that it is configured
# with (after a boot it has taken little yet), and HA may bring any of SERVICES to it, which it has on NODE.
rooms_beside() {
  # shellcheck disable=SC2016 # Perl's variables
  api_says /cluster/resources '
    my ($here, $services) = @ARGV;
    my %of_ha = map { s/^vm:/qemu\//r =~ s/^ct:/lxc\//r => 1 } split(" ", $services);
    my ($coming, %taken) = (0);
    for (grep { $_->{type} =~ /^(qemu|lxc)$/ && !$_->{template} } @$said) {
      $coming += $_->{maxmem} || 0 if $of_ha{"$_->{type}/$_->{vmid}"};
      $taken{$_->{node}} += $_->{maxmem} || 0 if ($_->{status} || "") eq "running";
    }
    for (grep { $_->{type} eq "node" } @$said) {
      next if ($_->{status} || "") ne "online" || $_->{node} eq $here || $_->{node} !~ /^[\w.-]+$/ || !$_->{maxmem} || !defined $_->{mem};
      my $used = $taken{$_->{node}} || 0;
      $used = $_->{mem} if $_->{mem} > $used;
      printf "%s %d\n", $_->{node}, $_->{maxmem} - $used - $coming;
    }' "$1" "$2" | sort
}

# running_vms NODE - a line `VMID BYTES QMP MACHINE` for each: the memory that it may take; what QEMU does (running, paused); the version of the machine that QEMU is for it, such as 10.1 (-: not said).
# The largest first, as it is the hardest to place.
running_vms() {
  # shellcheck disable=SC2016 # Perl's variables
  api_says "/nodes/$1/qemu --full 1" 'printf "%d %d %s %s\n", $_->{vmid}, $_->{maxmem}, $_->{qmpstatus} || "running", ($_->{"running-machine"} || "") =~ /-(\d+\.\d+)/ ? $1 : "-" for
    sort { $b->{maxmem} <=> $a->{maxmem} || $a->{vmid} <=> $b->{vmid} } grep { $_->{status} eq "running" && !$_->{template} } @$said'
}

# migration_says NODE VMID - of a VM on that node: RUNS (1 or 0); ALLOWED: the nodes that may take it, with commas (-: none; *: that isn't said, as of
# a running one before Proxmox VE 8.2; then the migration itself looks); STAYS: what keeps it there (-: nothing). Status 1: no answer, as of a
# locked one. A disk on a storage of the node alone could be copied, for hours: such a VM stays.
migration_says() {
  local text
  # shellcheck disable=SC2016 # Perl's variables
  text=$(api_says "/nodes/$1/qemu/$2/migrate" '
    die if !defined $said->{running} || ref $said->{local_disks} ne "ARRAY";
    my $mapped = ref $said->{"mapped-resource-info"} eq "HASH" ? $said->{"mapped-resource-info"} : {};
    my %mapped = map { $_ => 1 } @{ $said->{"mapped-resources"} || [] }, keys %$mapped;
    my @stays = sort map { $_->{volid} } @{ $said->{local_disks} };
    push @stays, sort grep { !$mapped{$_} } @{ $said->{local_resources} || [] };
    push @stays, sort grep { !($mapped->{$_} && $mapped->{$_}{"live-migration"}) } keys %mapped;
    my $allowed = $said->{allowed_nodes} ? join(",", @{ $said->{allowed_nodes} }) || "-" : "*";
    printf "%d %s %s\n", $said->{running} ? 1 : 0, $allowed, join(", ", @stays) || "-"') || return 1
  read -r RUNS ALLOWED STAYS <<<"$text" && [[ -n $STAYS ]]
}

# guest_says NODE VMID - of a VM on that node: GUEST_LOCK (-: none) and QMP: what QEMU does (running, paused, stopped …). Status 1: no answer.
guest_says() {
  local text
  # shellcheck disable=SC2016 # Perl's variables
  text=$(api_says "/nodes/$1/qemu/$2/status/current" 'printf "%s %s\n", $said->{lock} || "-", $said->{qmpstatus} || $said->{status} || die') || return 1
  read -r GUEST_LOCK QMP <<<"$text" && [[ -n $QMP ]]
}

# is_well NODE VMID - it has arrived there as it should. A migration moves the configuration first, then lets the guest go on, and takes its lock away last.
is_well() { [[ $(place_of "$2") == "$1" ]] && guest_says "$1" "$2" && [[ $GUEST_LOCK == - && $QMP == running ]]; }

# nodes_in_maintenance - those that HA keeps free, with commas around each: somebody empties them. Status 1: HA has services, and doesn't answer.
nodes_in_maintenance() {
  local text line found=, status=0
  if ! text=$(ha_says); then
    has_services || status=$?
    ((status == 1)) || return 1
  fi
  while IFS= read -r line; do [[ ! $line =~ ^lrm\ ([^\ ]+)\ \(maintenance\ mode ]] || found+="${BASH_REMATCH[1]},"; done <<<"$text"
  printf '%s' "$found"
}

# place_of VMID - the node that has it: its file is on one alone. Status 1: that can't be told. (Twice: it may go from one that isn't looked at yet
# to one that is already.)
place_of() {
  local found try
  for try in 1 2; do
    found=$(exec_within "$ASK_SECONDS" find "$ROOT/etc/pve/nodes/" -mindepth 3 -maxdepth 3 -path "*/qemu-server/$1.conf" 2>/dev/null) || return 1
    [[ -z $found ]] || break
  done
  found=${found%/qemu-server/*}
  printf '%s' "${found##*/}"
}

why_unsaid() { in_a_line "$(within "$PVESH_SECONDS" pvesh get "$1" 2>&1 >/dev/null || :)"; } # PATH - it is asked once more
