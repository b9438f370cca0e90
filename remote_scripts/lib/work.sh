#!/usr/bin/env bash
# What is done on this host that a restart would cut off: backups, migrations, replications, other tasks, actions of HA, installations of packages.
# Needs: common, ha
#
# Gives: work_says -> WHY_NOT, AT_WORK.
#
# Asked of files, not of the API: it answers in a moment, and when pveproxy is off. Nothing here can be opened by a setting: it ends by itself,
# or somebody has to look at it.
TASKS=/var/log/pve/tasks/active
BACKUP_LOCK=/run/vzdump.lock
REPLICATION=/var/lib/pve-manager/pve-replication-state.json
# Of apt, of dpkg, and of a whole run of unattended-upgrades, which lets go of the others between its steps.
PACKAGE_LOCKS=(/var/lib/dpkg/lock-frontend /var/lib/dpkg/lock /run/unattended-upgrades.lock)
# What a person has open, and opens again: consoles.
CONSOLES=' vncproxy vncshell spiceproxy spiceshell termproxy '
# Of a service of HA, at rest; any other state passes.
AT_REST=' started stopped disabled ignored ignore error freeze queued '
# Of a service of any node: it may be on its way to this one.
ON_ITS_WAY=' migrate relocate recovery fence request_start_balance '

# work_says - sets WHY_NOT: what is at work here, and AT_WORK to `yes`; WHY_NOT is left as it is where nothing is.
work_says() {
  local ask said=''
  AT_WORK=''
  for ask in a_task a_backup a_replication something_comes an_installation an_action_of_ha; do
    said=$("$ask") || said="whether something is at work here can't be told ($ask)"
    if [[ -n $said ]]; then
      WHY_NOT=$said AT_WORK=yes
      return
    fi
  done
}

# a_task - a line is `UPID SAVED`, and of one that has ended `UPID SAVED ENDTIME STATUS` (PVE::INotify, active workers); a UPID is
# `UPID:NODE:PID:PSTART:START:TYPE:ID:USER:`, its numbers hexadecimal, PSTART as in /proc/PID/stat. One whose process died stays in the list.
a_task() {
  local upid _ ended pid pstart start kind id user text
  find_whole "$TASKS" || return 0
  while read -r upid _ ended; do
    [[ -z $ended && $upid == UPID:*:*:*:*:*:*:* ]] || continue
    IFS=: read -r _ _ pid pstart start kind id user _ <<<"$upid"
    [[ $CONSOLES != *" $kind "* && "$pid$pstart$start" =~ ^[0-9A-Fa-f]{24,25}$ ]] || continue
    [[ $(started_at "$((16#$pid))") == "$((16#$pstart))" ]] || continue
    printf '%s %s runs here, since %s, of %s' "$(called "$kind")" "$id" "$(date -d "@$((16#$start))" '+%F %T %Z')" "$user"
    return
  done <<<"$text"
}

# find_whole PATH - sets `text` of the caller: what that file holds; status 1: there is none. One that can't be read may say anything: that is said.
find_whole() {
  [[ -e $ROOT$1 ]] || return 1
  text=$(exec_within "$ASK_SECONDS" cat "$ROOT$1" 2>/dev/null) && return 0
  printf "what is at work here can't be told: %s can't be read" "$1"
  return 1
}

# started_at PID - in clock ticks since the boot; a command's name may hold blanks and brackets.
started_at() {
  local text=''
  { read -r text <"$ROOT/proc/$1/stat"; } 2>/dev/null || return 0
  read -r -a text <<<"${text##*) }"
  printf '%s' "${text[19]:-}"
}

called() { # KIND
  case $1 in
    vzdump) printf 'a backup (vzdump)' ;;
    qmigrate | vzmigrate | hamigrate) printf 'a migration (%s)' "$1" ;;
    *) printf 'the task %s' "$1" ;;
  esac
}

# a_backup - vzdump holds its lock from the first guest to the last, also where no task shows it.
a_backup() {
  [[ ! -e $ROOT$BACKUP_LOCK ]] || within "$ASK_SECONDS" flock -n -s "$ROOT$BACKUP_LOCK" true 2>/dev/null ||
    printf 'a backup (vzdump) runs here: it holds %s' "$BACKUP_LOCK"
}

# a_replication - pvescheduler, or pvesr, notes in its state the process that copies.
a_replication() {
  local pid text
  find_whole "$REPLICATION" || return 0
  while read -r pid; do
    if grep -qaE 'pvescheduler|pvesr' "$ROOT/proc/$pid/cmdline" 2>/dev/null; then
      printf 'a replication of a guest runs here (process %s; pvesr status)' "$pid"
      return
    fi
  done < <(grep -aoE '"pid" *: *"?[0-9]+' <<<"$text" | grep -oE '[0-9]+$')
}

# something_comes - what another node's migration or replication runs here, over SSH. (The brackets keep grep from finding itself.)
something_comes() {
  local found
  found=$(grep -lsaP '(^|[/ ])(qm[\x00 ]mtunnel|pvesm[\x00 ]import)[\x00 ]?' "$ROOT"/proc/[0-9]*/cmdline) || :
  found=${found%%/cmdline*}
  [[ -z $found ]] || printf 'a migration or replication of another node comes in here (process %s)' "${found##*/}"
}

# an_installation - these locks are fcntl(2)'s, of the whole file (dpkg's frontend.txt): flock(1) doesn't see them, and the files always lie there.
# /proc/locks has a line `1: POSIX ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF`, with `->` before POSIX for one that waits. Its device isn't always stat's
# (btrfs), and a container has files of the same name: what the process has open decides.
an_installation() {
  local path inode line kind how pid place opened name _ text lines
  find_whole /proc/locks || return 0
  mapfile -t lines <<<"$text"
  for path in "${PACKAGE_LOCKS[@]}"; do
    inode=$(stat -c %i "$ROOT$path" 2>/dev/null) || continue
    for line in "${lines[@]}"; do
      read -r _ kind _ how pid place _ <<<"$line"
      [[ $kind == POSIX && $how == WRITE && ${place##*:} == "$inode" ]] || continue
      for opened in "$ROOT/proc/$pid/fd"/*; do
        [[ $opened -ef $ROOT$path ]] || continue
        { read -r name <"$ROOT/proc/$pid/comm"; } 2>/dev/null || name=''
        printf 'packages are being installed here: process %s (%s) holds %s' "$pid" "${name//[[:cntrl:]]/ }" "$path"
        return
      done
    done
  done
}

# an_action_of_ha - without services nobody is asked. (An /etc/pve that isn't mounted on a node of a cluster is votes_say's, which follows.)
an_action_of_ha() {
  local text here sid node state status=0
  has_services || status=$?
  ((status != 1 && status != 3)) || return 0
  if ((status == 2)); then
    printf "/etc/pve doesn't answer, so nobody knows whether HA is at work (pve-cluster.service)"
    return
  fi
  find_node_name
  here=$NODE_NAME
  if ! text=$(ha_says); then
    printf '%s' "\`ha-manager status\` doesn't say what HA is doing: ${text:0:200}" | tr '[:cntrl:]' ' '
    return
  fi
  while read -r sid node state; do
    [[ $ON_ITS_WAY == *" $state "* || $node == "$here" && $AT_REST != *" $state "* ]] || continue
    printf 'HA is at work on %s of %s: %s' "$sid" "$node" "$state"
    return
  done < <(services_in "$text")
}
