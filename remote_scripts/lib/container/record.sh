#!/usr/bin/env bash
# What is noted of a container, in /var/lib/homelab/containers/CTID (container.sh says what).
# Needs: files, lines, guest_tasks, container/conf
#
# Gives: note NAME [COMMAND...], noted NAME, noted_line NUMBER NAME; keep_record; read_wanted DIR -> METHOD, MINORS, FUNCTIONS, CARDS; remember_record, check_before, note_change,
#   nothing_to_put_back, forget_change; forget_since_before; in_force; note_ran yes|no, find_why_not_owed -> WHY.

RECORDS=/var/lib/homelab/containers

# note NAME [COMMAND...] - what COMMAND says becomes that part of the record, or else standard input.
note() {
  need_dir "$ROOT$RECORDS/$CTID"
  write_atomically "$RECORDS/$CTID/$1" 0600 "${@:2}"
}

# noted NAME - that part of the record. By a program: of a disk that fails while it is read, bash's own means don't tell.
noted() { [[ ! -s $ROOT$RECORDS/$CTID/$1 || ! -r $ROOT$RECORDS/$CTID/$1 ]] || cat "$ROOT$RECORDS/$CTID/$1"; }

noted_line() {
  local lines=()
  mapfile -t lines < <(noted "$2")
  printf '%s\n' "${lines[$1 - 1]:-}"
}

keep_record() {
  note ours lines_of "${WANT[@]}"
  note nodes nodes_now
  [[ ${AT_BOOT:-no} == yes ]] || note wanted wanted_now # at a boot what is wanted is as it was
}

wanted_now() {
  printf '%s\n%s\n%s\n' "$METHOD" "$MINORS" "$FUNCTIONS"
  [[ -z $CARDS ]] || printf '%s\n%s%s\n' "$CARDS" "${GROUP_IDS[render]:+render=${GROUP_IDS[render]} }" "${GROUP_IDS[video]:+video=${GROUP_IDS[video]}}"
}

# nodes_now - the nodes that lines of ours are about: path, numbers, the card's address and which of its nodes it is (card, renderD, nvidia; -:
# it is known by its path), and how it is given (a dev[n] option's words, or `mount`).
nodes_now() {
  local path address kind
  if [[ ${AT_BOOT:-no} == yes ]]; then
    lines_of "${FOLLOWED[@]}"
    return 0
  fi
  for path in "${DEVICES[@]}"; do
    [[ -n ${GIVEN[$path]:-} ]] || continue
    address=${CARD_OF[$path]:--} kind=-
    [[ $address == - ]] || case $path in
      /dev/dri/card*) kind=card ;;
      /dev/dri/*) kind=renderD ;;
      *) kind=nvidia ;;
    esac
    printf '%s %s:%s %s %s %s\n' "$path" "${MAJOR[$path]}" "${MINOR[$path]}" "$address" "$kind" "${GIVEN[$path]}"
  done
}

# read_wanted DIR - sets METHOD, MINORS, FUNCTIONS and CARDS as that record has them; status 1: there is none.
read_wanted() {
  CARDS=''
  [[ -r $1/wanted ]] && { read -r METHOD && read -r MINORS && read -r FUNCTIONS && { read -r CARDS || :; }; } <"$1/wanted"
}

# check_before - once, when the configuration was read: if it isn't what an earlier run left (`after`), somebody has changed it since, or that run
# was cut short. What was before it would take the change away.
check_before() {
  [[ -s $ROOT$RECORDS/$CTID/before ]] || return 0
  find_digest
  [[ $DIGEST == "$(noted after)" ]] || nothing_to_put_back
}

# nothing_to_put_back - until the container's configuration is in force: an empty one is never put back, and none is noted in its place.
nothing_to_put_back() { note before :; }

# note_change - before anything is written: all that may be ours afterwards, whatever happens in between.
note_change() {
  local revision
  [[ -e $ROOT$RECORDS/$CTID/before ]] || {
    note before printf '%s' "$TEXT"
    note ours_before lines_of "${OURS[@]}"
    note wanted_before noted wanted
    note nodes_before noted nodes
  }
  note ours lines_of_both
  note nodes nodes_of_both
  revision=$(noted revision)
  note revision printf '%s\n' "$((${revision:-0} + 1))"
  ! is_up || note restart :
}

# lines_of_both, nodes_of_both - as they were and as they are to be.
lines_of_both() { lines_of "${OURS[@]}" "${WANT[@]}" | sort -u; }

nodes_of_both() { { noted nodes && nodes_now; } | sort -u; }

# Of each part of the record what it was when this run began; a part that wasn't there isn't in it. (An x follows, for what ends in an empty line.)
RECORD_PARTS=(ours wanted nodes revision restart before after ours_before wanted_before nodes_before)
declare -A RECORD=()
remember_record() {
  local part
  RECORD=()
  for part in "${RECORD_PARTS[@]}"; do
    [[ ! -e $ROOT$RECORDS/$CTID/$part ]] || RECORD[$part]=$(noted "$part" && printf x)
  done
}

# forget_change - nothing was written: the record is what it was when this run began.
forget_change() {
  local part
  for part in "${RECORD_PARTS[@]}"; do
    if [[ -n ${RECORD[$part]:-} ]]; then note "$part" printf '%s' "${RECORD[$part]%x}"; else rm -f "$ROOT$RECORDS/$CTID/$part"; fi
  done
  rmdir "$ROOT$RECORDS/$CTID" 2>/dev/null || :
}

# forget_since_before - the configuration is again what it was before the change that waits for a restart; so is the record.
forget_since_before() {
  local dir part
  dir=$ROOT$RECORDS/$CTID
  for part in ours wanted nodes; do
    [[ ! -e $dir/${part}_before ]] || mv -fT "$dir/${part}_before" "$dir/$part"
    [[ -s $dir/$part ]] || rm -f "$dir/$part"
  done
  rm -f "$dir"/{before,restart,after}
  [[ -e $dir/wanted ]] || rm -rf "$dir"
}

# in_force - the running container, or the one that is off, has what its configuration says.
in_force() { rm -f "$ROOT$RECORDS/$CTID"/{restart,before,after,ours_before,wanted_before,nodes_before}; }

# note_ran yes|no - that it is to be started again: when, in which boot, whether it is off by now, and by what it is told from another one of its id.
note_ran() { note ran printf '%(%s)T %s %s %s\n' -1 "$(boot_now)" "$1" "$(card_addresses)"; }

card_addresses() {
  local line found=()
  read_lines "$ROOT$PVE_LXC/$CTID.conf"
  for line in "${READ_LINES[@]}"; do
    [[ $line != '['* ]] || break
    [[ ! $line =~ ^net[0-9]*:.*hwaddr=([0-9A-Fa-f:]*) ]] || found+=("${BASH_REMATCH[1]^^}")
  done
  ((${#found[@]} < 2)) || mapfile -t found < <(printf '%s\n' "${found[@]}" | sort)
  local IFS=,
  printf '%s\n' "${found[*]}"
}

# find_why_not_owed - sets WHY, as find_why_off does, by what is noted.
find_why_not_owed() {
  local at='' boot='' off='' known='' now
  read -r at boot off known < <(noted ran) || :
  [[ $at =~ ^[0-9]+$ ]] || { WHY="when is not noted" && return 0; }
  now=$(card_addresses)
  # Elsewhere it has no configuration here.
  if [[ -e $ROOT$PVE_LXC/$CTID.conf && $known != "$now" ]]; then
    WHY="that this is still the same container isn't certain"
  else
    find_why_off vz "$CTID" "$at" "$boot" root@pam "$off"
  fi
}
