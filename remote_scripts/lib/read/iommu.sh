#!/usr/bin/env bash
# The IOMMU: its tables in the firmware, its groups, what the kernel says of it: a key of read_host.sh's answer.
# Needs: common, lines, read/signs, read/text
#
# Gives: iommu.

# How much of an ACPI table is passed on, in bytes; real ones have some hundred.
TABLE_BYTES=65536

# The ACPI table says whether the firmware offers an IOMMU: DMAR (Intel) or IVRS (AMD). That one is in use, only groups prove.
iommu() {
  local table tables=() TEXT lines=() groups=("$ROOT"/sys/kernel/iommu_groups/[0-9]*)
  for table in DMAR IVRS; do
    [[ ! -e $ROOT/sys/firmware/acpi/tables/$table ]] || tables+=("$table")
  done
  mapfile -t lines < <(exec_within "$ASK_SECONDS" dmesg 2>/dev/null | grep -E 'AMD-Vi|DMAR|iommu: Default domain|1:1 IOMMU mapping')
  [[ -e ${groups[0]} ]] || groups=()
  printf ',"iommu":{"tables":'
  json_list "${tables[@]}"
  printf ',"groups":%s' "${#groups[@]}"
  head_and_tail 40 "${lines[@]}"
  json_entry kernel_log "$TEXT"
  said_of_groups "${groups[@]}"
  acpi_tables "${tables[@]}"
  interrupts
  printf '}'
}

# said_of_groups FOLDER... - of each group its default domain's type, and the memory that the firmware wants mapped 1:1 for it. Without a
# process for each: a big host has thousands. What the kernel doesn't write is left out.
said_of_groups() {
  local group type line first last regions separator=''
  note_unreadable "${@/%//reserved_regions}"
  printf ',"of_group":{'
  for group in "$@"; do
    [[ ${group##*/} =~ ^(0|[1-9][0-9]{0,8})$ && -f $group/reserved_regions ]] || continue
    ! is_unreadable "${group#"$ROOT"}/reserved_regions" || continue
    type='' regions=''
    [[ ! -r $group/type ]] || read -r type <"$group/type" || :
    [[ $type =~ ^[A-Za-z-]{1,20}$ ]] || type=''
    read_lines "$group/reserved_regions"
    for line in "${READ_LINES[@]}"; do
      [[ $line =~ ^(0x[0-9a-f]{1,16})\ (0x[0-9a-f]{1,16})\ direct$ ]] || continue
      printf -v first '0x%x' "${BASH_REMATCH[1]}"
      printf -v last '0x%x' "${BASH_REMATCH[2]}"
      regions+="${regions:+,}\"$first-$last\""
    done
    printf '%s"%s":{"type":"%s","direct":[%s]}' "$separator" "${group##*/}" "$type" "$regions"
    separator=,
  done
  printf '}'
}

# acpi_tables NAME... - as base64: homelab/host/acpi.py reads them.
acpi_tables() {
  local table file text separator=''
  note_unreadable "${@/#/$ROOT/sys/firmware/acpi/tables/}"
  printf ',"acpi":{'
  for table in "$@"; do
    file=$ROOT/sys/firmware/acpi/tables/$table
    [[ -f $file && -r $file ]] || continue
    text=$(base64 -w 0 "$file" 2>/dev/null) || :
    ((${#text} * 3 / 4 < TABLE_BYTES)) || not_whole "${file#"$ROOT"}" "it is longer than $TABLE_BYTES bytes"
    ((${#text} * 3 / 4 < TABLE_BYTES)) || text=$(head -c "$TABLE_BYTES" "$file" | base64 -w 0)
    printf '%s"%s":"%s"' "$separator" "$table" "$text"
    separator=,
  done
  printf '}'
}

# interrupts - `remapped` by the IOMMU, or `plain`: the names of their chips tell (arch/x86/kernel/apic/io_apic.c, ioapic_ir_chip). The
# kernel's log says it too, at its beginning, which a host that runs for long has no more.
interrupts() {
  local line lines=() chips=''
  { mapfile -t lines <"$ROOT/proc/interrupts"; } 2>/dev/null || :
  for line in "${lines[@]}"; do
    case $line in
      *IR-IO-APIC* | *IR-PCI-MSI*) chips=remapped && break ;;
      *IO-APIC* | *PCI-MSI*) chips=plain ;;
    esac
  done
  json_entry interrupts "$chips"
}
