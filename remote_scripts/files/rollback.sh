#!/bin/sh
# Written by homelab: ends a boot on trial that nobody confirmed. Gone once it is confirmed.
#
# The default never changed, so a restart leads back, and nothing is written for it. `rollback SECONDS` is run so long after each boot's start
# (boot/trial.py): whether the boot is in order this program's agent says (layers/boot_verdict.py); without an answer it isn't.
# Each act that may hang is killed in time. A boot that isn't the trial is never restarted.
root=${HOMELAB_ROOT:-}
export LC_ALL=C
home=$root/var/lib/homelab run=$root/run/homelab

limited() { timeout -s KILL "${STEP_SECONDS:-60}" "$@"; }

ask() { # of any agent on this host that is whole: its answer is the last line
  for agent in "$home"/agents/*/agent.pyz; do
    printf '{"layer":"boot_verdict","input":{"seconds":%s}}' "$after" |
      timeout -s KILL "${STEP_SECONDS:-$((after / 10 + 600))}" /usr/bin/python3 -I -S -B -X utf8 "$agent" apply && return
    [ "$?" != 137 ] || return # it hung, and the next one would, too
  done
}

# shellcheck disable=SC2016 # the inner shell expands it
say_to_all() { # by the kernel's log to the host's screen, too: nobody may get any other word of it
  echo "$1" >&2
  limited sh -c 'printf "<2>homelab: %s\n" "$1" >"$2"' - "$1" "$root/dev/kmsg" 2>/dev/null
}

# In an orderly way, then by force; the last of these flushes every disk and asks every driver to stop, so that one that is gone can hang it. The
# kernel's emergency restart asks nobody; and this shell alone writes for it, since no program may start any more.
restart_host() {
  for force in '' --force '--force --force'; do
    # shellcheck disable=SC2086 # several options
    if limited systemctl reboot $force; then sleep "${REBOOT_SECONDS:-600}"; else sleep "${RETRY_SECONDS:-5}"; fi
  done
  limited sync
  say_to_all "no \`systemctl reboot\` has ended this boot: restarting by the kernel's emergency restart"
  (printf b >"$root/proc/sysrq-trigger") 2>/dev/null
  sleep "${RETRY_SECONDS:-5}"
  say_to_all "this host could not be restarted: switch it off and on by hand"
}

end_trial() {
  if [ ! -e "$run/restarting" ]; then # else this program was killed before its restart
    verdict=$(ask | tail -n 1)
    case $verdict in
      '"stay"') return ;;
      '"give back: '*) reason=${verdict#'"give back: '} && reason=${reason%'"'} ;;
      *) reason="was not confirmed within $after s of its start, and this program's agent doesn't say whether it is in order" ;;
    esac
    [ -e "$home/trial" ] || return # confirmed meanwhile
    mkdir -m 700 "$run" 2>/dev/null
    printf 'boot %s %s' "$here" "$reason" >"$run/restarting"
  fi
  # Who renames it decides. On a disk that takes nothing it stays: the next boot knows all the same that it is no trial.
  limited mv -T "$home/trial" "$home/taken-back" || [ -e "$home/trial" ] || [ -e "$home/taken-back" ] || { rm -f "$run/restarting" && return; }
  new=$home/.rolled-back.homelab-tmp
  limited cp "$run/restarting" "$new" && limited sync "$new" && limited mv -T "$new" "$home/rolled-back"
  limited sync -f "$home"
  restart_host
}

after=$1
read -r here <"$root/proc/sys/kernel/random/boot_id"
if [ -e "$home/trial" ]; then
  while read -r key value; do # this program lies beside it
    # Armed in this boot it is for the next one: somebody is in reach of this.
    [ "$key $value" != "boot $here" ] || exit 0
  done <"$home/trial"
fi
read -r words <"$root/proc/cmdline"
# A status that isn't 0 would make systemd start it every 10 s.
if [ "${words#*homelab.trial}" = "$words" ]; then # no trial is running: what is left of it the agent takes away
  ask || true
else
  end_trial </dev/null || true
fi
