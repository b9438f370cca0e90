#!/bin/sh
# Written by homelab: gives back a boot configuration that nobody confirmed. Gone once the boot is confirmed.
#
# `rollback SECONDS` is run so long after each boot's start (shared/switch.py); `rollback FUNCTION ...` is a step of it: a process of its own,
# killed in time, so that nothing that fails or hangs stops the rest. Whether the boot is in order this program's agent says
# (layers/boot_verdict.py); without an answer it isn't. Then our words are taken from the next boot's command line, since they are the one
# switch, and the host is restarted. What has no effect without them the agent gives back, now or in a later boot.
# shellcheck disable=SC2015,SC2016,SC2329 # functions are called by name
ROOT=${ROOT:-}
export LC_ALL=C
home=$ROOT/var/lib/homelab run=$ROOT/run/homelab menu=$ROOT/boot/grub/grub.cfg uuids=$ROOT/etc/kernel/proxmox-boot-uuids
kernel_line='^[[:space:]]*linux(efi)?[[:space:]]'
# So many boots are restarted, where they still run with our words.
most_boots=4

say() { echo "$*" >&2; }
note() { # armed|rolling-back KEY
  while read -r key value; do
    [ "$key" != "$2" ] || { printf '%s' "$value" && return; }
  done 2>/dev/null <"$home/$1"
}

step() { # SECONDS FUNCTION [ARGUMENT...]
  limit=${STEP_SECONDS:-$1} status=0
  shift
  timeout -s KILL "$limit" sh "$program" "$@" </dev/null || status=$?
  [ "$status" = 0 ] || case $1 in is_* | runs_*) ;; *) say "step failed with status $status (137: it hung): $*" ;; esac
  return "$status"
}

ask() { # VERB SECONDS - of any agent on this host that is whole: its answer is the last line
  for agent in "$home"/agents/*/agent.pyz; do
    printf '{"layer":"boot_verdict","input":{"after":%s,"restarts":%s%s}}' "$after" "${restarts:-false}" "${lock:-}" |
      timeout -s KILL "${STEP_SECONDS:-$2}" /usr/bin/python3 -I -S -B -X utf8 "$agent" "$1" && return
    [ "$?" != 137 ] || return # it hung, and the next one would, too
  done
}

# Files: a reader sees the old bytes or the new ones, and they are on the disk before anything goes on.
temporary() { printf '%s' "${1%/*}/.${1##*/}.homelab-tmp"; }                                   # PATH
in_place() { sync "$(temporary "$1")" && mv -fT "$(temporary "$1")" "$1" && sync "${1%/*}/"; } # PATH
write() { cat >"$(temporary "$1")" && in_place "$1"; }                                         # PATH <CONTENT
copy() { cp -aT --remove-destination "$1" "$(temporary "$2")" && in_place "$2"; }              # SOURCE PATH
remove() { rm -f "$1" && sync "${1%/*}/"; }                                                    # PATH
is_esp() { grep -qs '[^[:space:]]' "$uuids"; }

# All of `all` out of the lines that give a kernel its command line; `first`: out of the first line.
words_out='BEGIN { many = split(all, word, " ") }
(first ? NR == 1 : $1 ~ /^(linux|linuxefi|options)$/) {
  line = " " $0 " "
  for (i = 1; i <= many; i++) while ((at = index(line, " " word[i] " "))) line = substr(line, 1, at) substr(line, at + length(word[i]) + 2)
  $0 = substr(line, 2, length(line) - 2)
}
{ print }'

our_words() { # as they were noted when the roll-back began, or are recorded still
  words=
  for word in $(note rolling-back words) $(cat "$home"/cmdline/* 2>/dev/null) $(grep -o 'homelab\.vfio=[^[:space:]]*' "$ROOT/proc/cmdline") \
    $(sed -n 's/^export HOMELAB_WORDS="${HOMELAB_WORDS:-} \(.*\)"$/\1/p' "$ROOT"/etc/default/grub.d/zz-homelab-*.cfg 2>/dev/null); do
    case " $words " in *" $word "*) ;; *) words="$words${words:+ }$word" ;; esac
  done
}

runs_with_ours() {
  our_words
  for word in $words; do tr ' ' '\n' <"$ROOT/proc/cmdline" | grep -qxF -e "$word" && return; done
  return 1
}

begin() { # REASON - notes what a later boot needs to go on, and tells. It is empty where it was noted
  our_words
  boots=$(note rolling-back boots) decided=$(note rolling-back decided) reason=${1:-$(note rolling-back reason)}
  printf 'boot %s\nloader %s\ndecided %s\nreason %s\nwords %s\nboots %s\n' "$here" "$loader" "${decided:-$here}" "$reason" "$words" \
    "$((${boots:-0} + 1))" | write "$home/rolling-back" &&
    printf 'boot %s %s' "${decided:-$here}" "$reason" | write "$home/rolled-back" &&
    mkdir -p "$home/pending" && : >"$home/pending/boot" && sync "$home/pending/boot" "$home/pending/" "$home/"
}

give_back() { # RECORD - what was there before our file; what somebody has made of it is kept where backups lie
  path=${1#"$home/files/"*/} kept=$home/kept/$path sum=$home/sums/$path edit=$ROOT/var/backups/homelab/$path
  if [ -e "$sum" ] && [ "$(sha256sum <"$kept" | cut -c 1-64)" != "$(cat "$sum")" ]; then
    say "/$path stays: its copy, /var/lib/homelab/kept/$path, isn't what was kept there" && return 1
  fi
  now=$(sha256sum 2>/dev/null <"$ROOT/$path" | cut -c 1-64)
  if [ -n "$now" ] && ! grep -q " $now\$" "$1" && ! cmp -s "$ROOT/$path" "$kept"; then
    mkdir -p "${edit%/*}" && copy "$ROOT/$path" "$edit.$(printf %.8s "$now")" || say "/$path was edited by hand, and can't be kept"
  fi
  if [ -e "$kept" ]; then copy "$kept" "$ROOT/$path"; else remove "$ROOT/$path"; fi && remove "$1" && rm -f "$kept" "$sum"
}

drop_words() { # LAYER
  for record in "$home/files/$1/etc/default/grub.d/zz-homelab-$1.cfg" "$home/files/$1/etc/grub.d/12_homelab"; do
    [ ! -e "$record" ] || give_back "$record" || return 1
  done
  [ ! -e "$home/cmdline/$1" ] || drop_texts "$home/cmdline/$1" "$(readlink -f "$ROOT/etc/kernel/cmdline")"
}

drop_texts() { # RECORD FILE - out of the first line the text that was put there, as it was put; its words, if somebody has moved these
  IFS= read -r first <"$2"
  rest=$((${#first} + 1)) left=
  # The longest first: one may be the beginning of another.
  while IFS= read -r text; do
    case "$first " in *"$text "*) left="$first " && left="${left%"$text "*} ${left##*"$text "}" && left=${left% } && break ;; esac
  done <<END
$(awk 'NF { print length, $0 }' "$1" | sort -rn | cut -d ' ' -f 2-)
END
  [ -n "$left" ] || left=$(printf '%s\n' "$first" | awk -v first=1 -v all="$(cat "$1")" "$words_out")
  cp -aT --remove-destination "$2" "$(temporary "$2")" && { printf '%s' "$left" && tail -c "+$rest" "$2"; } | write "$2" && remove "$1"
}

generate() {
  rm -f "${menu%/*}/.homelab-tmp"
  if is_esp; then
    proxmox-boot-tool refresh || return 1
  else
    # update-grub may end well with a menu without a kernel, and fail with half a menu, with which no host starts: the one from before comes back.
    old=$home/.grub.cfg.homelab-tmp
    { grep -qsE "$kernel_line" "$menu" && cp -aT "$menu" "$old" && sync "$old"; } || rm -f "$old"
    if ! update-grub || { [ -e "$old" ] && ! grep -qE "$kernel_line" "$menu"; }; then
      [ ! -e "$old" ] || cmp -s "$old" "$menu" || { rm -f "$menu.new" && copy "$old" "$menu"; }
      return 1
    fi
    rm -f "$old"
  fi
  sync -f "$ROOT/etc" "$ROOT/var/lib" "$ROOT/boot" && rm -f "$home/pending/boot"
}

choose_second_entry() { # with ESPs GRUB reads another environment
  if [ "$loader" = systemd-boot ]; then
    [ -e "$ROOT/etc/kernel/postinst.d/zzz-homelab" ] && bootctl set-oneshot "homelab-without-gpu-$(uname -r).conf"
  else
    ! is_esp && entry=$(sed -nE "s/^menuentry .*'(homelab-without-gpu-[^']*)'.*/\1/p" "$menu" | head -n 1) && [ -n "$entry" ] && grub-reboot "$entry"
  fi
}

take_words_out() { # by hand, where nothing can be generated; fails where there was nothing to take, too
  our_words
  taken=
  is_esp || take_out_of "$menu"
  ! is_esp || while read -r uuid || [ -n "$uuid" ]; do
    [ -n "$uuid" ] && [ -e "$ROOT/dev/disk/by-uuid/$uuid" ] && esp=$(mktemp -d "$ROOT/run/homelab-esp.$$.XXXXXX") || continue
    mount "$ROOT/dev/disk/by-uuid/$uuid" "$esp" && take_out_of "$esp/grub/grub.cfg" "$esp"/loader/entries/proxmox-*.conf && umount "$esp"
    rmdir "$esp"
  done <"$uuids"
  [ -n "$words" ] && [ -n "$taken" ]
}

take_out_of() { # FILE... - out of the lines that give a kernel its command line. Beside it, so that a full disk leaves the old one
  for file in "$@"; do
    [ -e "$file" ] || continue
    new=${file%/*}/.homelab-tmp
    cp -aT "$file" "$new" && awk -v all="$words" "$words_out" "$file" >"$new" && sync "$new" && ! cmp -s "$file" "$new" && mv -fT "$new" "$file" && taken=yes
    rm -f "$new"
  done
}

say_to_all() { # by the kernel's log to the host's screen, too: nobody may get any other word of it
  say "$1"
  timeout -s KILL 10 sh -c 'printf "<2>homelab: %s\n" "$1" >"$2"' - "$1" "$ROOT/dev/kmsg" 2>/dev/null
}

# In an orderly way, then by force; the last of these flushes every disk and asks every driver to stop, so that one that is gone can hang it. The
# kernel's emergency restart asks nobody; and this shell alone writes for it, since no program may start any more.
restart_host() {
  for force in '' --force '--force --force'; do
    # shellcheck disable=SC2086 # several options
    if timeout -s KILL 60 systemctl reboot $force; then sleep "${REBOOT_SECONDS:-600}"; else sleep "${RETRY_SECONDS:-5}"; fi
  done
  timeout -s KILL "${STEP_SECONDS:-60}" sync
  say_to_all "no \`systemctl reboot\` has ended this boot: restarting by the kernel's emergency restart"
  (printf b >"$ROOT/proc/sysrq-trigger") 2>/dev/null
  sleep "${RETRY_SECONDS:-5}"
  say_to_all "this host could not be restarted: switch it off and on by hand"
}

roll_back() {
  reason='' noted=yes failed='' differs='' restart=yes began=$here
  if [ ! -e "$home/rolling-back" ]; then
    # Armed in this boot it is for the next one: somebody is in reach of this.
    [ "$(note armed boot)" != "$here" ] || return 0
    verdict=$(ask apply $((after / 10 + 120)) | tail -n 1)
    case $verdict in
      '"stay"') return 0 ;;
      '"give back: '*) reason=${verdict#'"give back: '} && reason=${reason%'"'} ;;
      *) reason="was not confirmed within $after s of its start, and this program's agent doesn't say whether it is in order" ;;
    esac
  fi
  mkdir -m 700 "$run" 2>/dev/null
  # So that nobody writes meanwhile; but somebody who hangs must not keep us from it, nor the agent after us.
  { command exec 9>>"$run/lock" && flock -w "${LOCK_TIMEOUT:-60}" 9; } || { lock=',"lock_seconds":0' && say "going on without the lock, which another run holds"; }
  if [ -e "$home/rolling-back" ]; then
    say "going on with a roll-back"
    # Begun in another boot: this one needs a restart only if it still runs with our words.
    [ "$(note rolling-back boot)" = "$here" ] || began=''
  elif [ ! -e "$home/armed" ] || [ "$(note armed boot)" = "$here" ]; then
    return 0 # confirmed, given back or armed anew meanwhile
  else
    say "boot $here $reason: giving back the boot configuration from before"
    if ! mv -T "$home/armed" "$home/rolling-back"; then
      [ -e "$home/armed" ] || return 0
      began='' # the next boot won't know of this one: nothing but our words is a reason to restart again and again
    fi
  fi
  printf 'boot %s %s' "$here" "${reason:-is being undone}" >"$run/restarting"
  step 60 begin "$reason" || noted=no
  boots=$(note rolling-back boots)
  # What boots had no effect on, another one will not change; and a person may be at work on it.
  [ -n "$began" ] || { step 60 runs_with_ours && [ "${boots:-0}" -le "$most_boots" ]; } || restart=no
  for layer in vfio iommu; do step 60 drop_words "$layer" || failed=yes; done
  step 600 generate || failed=yes
  [ -n "$failed" ] || differs=yes
  # The next boot takes the second entry, and our words go out of the configuration that was generated before. Either is enough.
  [ -z "$failed" ] || ! step 150 choose_second_entry || differs=yes
  [ -z "$failed" ] || ! step 150 take_words_out || differs=yes
  step 300 sync -f "$ROOT/etc" "$ROOT/boot" "$home"
  command exec 9>&-
  [ "$restart" = no ] || restarts=true
  # On a full disk what has no effect without our words waits for a boot that can note what is left to do.
  if [ "$noted" = no ] || [ "$(ask revert 2400 | tail -n 1)" != '"finished"' ]; then
    say "the roll-back is not finished: the switch stays armed, and goes on at the next boot"
    [ "$restart" = yes ] || step 60 rest
  fi
  if [ "$restart$noted$differs" = yesno ]; then # it would come back the same, and nobody could count how often
    restart=no
    say_to_all "boot $here ${reason:-is to be undone}, and nothing could be written that the next boot would read$(unwritable). This host is not \
restarted. Choose the entry 'without GPU passthrough' in its boot menu; once it can write again, the next boot goes on."
  fi
  if [ "$restart" = yes ]; then restart_host; else rm -f "$run/restarting"; fi
}

unwritable() {
  for place in /var/lib/homelab /etc /boot; do [ -w "$ROOT$place" ] || printf '%s' ", not writable: $place"; done
}

rest() { # there is nothing to restart for, and something left to do
  record=$(sed 's/^boot .*/boot resting/' "$home/rolling-back") && printf '%s\n' "$record" | write "$home/rolling-back"
}

program=$0
read -r here <"$ROOT/proc/sys/kernel/random/boot_id"
loader=$(note rolling-back loader)
[ -n "$loader" ] || loader=$(note armed loader)
case $1 in
  *[!0-9]*) "$@" ;;
  *) export after="$1" && roll_back </dev/null ;;
esac
exit
