#!/usr/bin/env bash
# What we wrote on this host, and what became of it: keys of read_host.sh's answer.
# Needs: files, whole, boot, switch, lacking, container/drift, container/record, handover/rest, read/text
#
# Gives: managed; edits; kept_scripts; ledger; containers; turned_away; set_aside.

# What we wrote, and what became of it.
managed() {
  local layer path state steps=() separator=
  printf ',"managed":['
  for layer in iommu vfio nodes cards values handover; do
    [[ ! -d $STATE/files/$layer ]] || while read -r state path; do
      printf '%s{"layer":"%s","state":"%s"' "$separator" "$layer" "$state"
      json_entry path "$path"
      printf '}'
      separator=,
    done < <(layer_states "$layer")
  done
  printf '],"stale_initramfs":'
  find_stale
  json_list "${STALE[@]}"
  find_rolled_back
  json_entry rolled_back "$ROLLED_BACK"
  is_rolling_back && printf ',"rolling_back":true' || printf ',"rolling_back":false'
  printf ',"judged":'
  string_of /var/lib/homelab/judged
  printf ',"pending":'
  for state in boot initramfs; do ! is_pending "$state" || steps+=("$state"); done
  json_list "${steps[@]}"
  printf ',"boot_lacks":'
  noted_boot_lacks
}

# Copies of what somebody made of our files (lib/files/kept.sh, keep_edit).
edits() {
  local copies=()
  [[ ! -d $ROOT$EDITS ]] || mapfile -t copies < <(find "$ROOT$EDITS" -type f -printf "$EDITS/%P\n" 2>/dev/null | sort)
  printf ',"edits":'
  json_list "${copies[@]}"
}

# This program's scripts that lie here (kept_scripts.sh): owner -> names of those that are whole, which is in their names.
kept_scripts() {
  local dir separator='' names
  printf ',"kept_scripts":{'
  for dir in "$STATE"/scripts/*/; do
    [[ -d $dir ]] || continue
    mapfile -t names < <(whole_files "$dir")
    dir=${dir%/}
    printf '%s' "$separator"
    json_string "${dir##*/}"
    printf ':'
    json_list "${names[@]}"
    separator=,
  done
  printf '}'
}

# What was noted of VMs and mappings (layers/ledger.py): name -> its text.
ledger() {
  local name names=() separator=
  [[ ! -d $STATE/ledger ]] || mapfile -t names < <(find "$STATE/ledger" -type f ! -name '.*' -printf '%P\n' 2>/dev/null | sort)
  note_unreadable "${names[@]/#/$STATE/ledger/}"
  printf ',"ledger":{'
  for name in "${names[@]}"; do
    printf '%s' "$separator"
    json_string "$name"
    printf ':'
    string_of "/var/lib/homelab/ledger/$name"
    separator=,
  done
  printf '}'
}

# Containers that were given cards by us, and how they differ from what was set up.
containers() {
  local dir separator='' drift
  printf ',"containers":['
  for dir in "$STATE"/containers/*/; do
    CTID=${dir%/} CTID=${CTID##*/}
    if read_wanted "$dir"; then
      mapfile -t drift < <(container_drift)
    elif [[ -s $dir/ours ]]; then
      MINORS='' CARDS='' drift=("a run was cut short while it gave container $CTID its devices")
    else
      continue
    fi
    printf '%s{"id":%s,"minors":"%s","cards":"%s","drift":' "$separator" "$CTID" "$MINORS" "$CARDS"
    json_list "${drift[@]}"
    printf '}'
    separator=,
  done
  printf ']'
}

# turned_away - of each shared card, the last VM that didn't get it because a run was at work here, when and whose run that was (lib/handover/take.sh), until
# a VM has got it since.
turned_away() {
  local file name separator='' key value vm at run
  printf ',"turned_away":{'
  for file in "$ROOT$HANDOVER"/*.turned_away; do
    [[ -e $file ]] || continue
    name=${file##*/} vm='' at='' run=''
    while IFS='=' read -r key value; do
      case $key in vm) vm=$value ;; at) at=$value ;; run) run=$value ;; esac
    done <"$file"
    [[ $vm =~ ^[1-9][0-9]*$ ]] || continue
    printf '%s' "$separator"
    json_string "${name%.turned_away}"
    printf ':{"vm":%s' "$vm"
    json_entry at "$at"
    json_entry run "$run"
    printf '}'
    separator=,
  done
  printf '}'
}

# set_aside - what is set for a restart of this node until its turn ends: lines of lib/away.sh.
set_aside() {
  local TEXT
  read_text "$STATE/away"
  cut_end "$TEXT"
  json_entry set_aside "$TEXT"
}
