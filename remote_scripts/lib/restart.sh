#!/usr/bin/env bash
# A restart of the system, once the script that asks for it has answered.
# Needs: lines, lock, stopping
#
# Gives: restart_soon -> OUTPUT; is_awaited.

PROCESSES=/proc # not below ROOT: it is about this very script

# starters - the processes that have started this script, and these.
starters() {
  local process=$PPID FIRST READ_LINES
  while ((process > 1)); do
    # By bash itself: there may be many.
    find_first "$PROCESSES/$process/status" '^PPid:[[:space:]]*([0-9]+)$'
    [[ -n $FIRST ]] || return 0
    printf '%s ' "$process"
    process=$FIRST
  done
}
STARTED_BY=$(starters)

# connection - the process of sshd that has started this script, and has its answer to send; 1, which doesn't end, where there is none.
connection() {
  local process name
  for process in $STARTED_BY; do
    { read -r name <"$PROCESSES/$process/comm"; } 2>/dev/null || name=''
    if [[ $name == sshd* ]]; then
      printf '%s' "$process"
      return
    fi
  done
  printf 1
}

# restart_soon - in a unit of its own, which waits until this script has ended, not a minute: on a busy system what comes between the order and the
# answer can take longer than any fixed time, and whoever waits for the answer would see a connection that broke. Then it waits until that connection has ended, as whoever has its answer
# ends it; a second, since one that serves other scripts too stays. (Timers are a minute inexact by default.)
# A system that goes down takes no new unit (`Transaction is destructive`): whoever asked for that before, such as a run that was killed, has what it wants.
restart_soon() {
  # shellcheck disable=SC2016 # it is the unit's shell that expands this
  run_logged systemd-run --collect --on-active=0.1 --timer-property=AccuracySec=100ms \
    bash -c 'timeout 60 tail -s 0.1 --pid="$1" -f /dev/null; timeout 1 tail -s 0.1 --pid="$2" -f /dev/null; systemctl reboot' restart "$$" "$(connection)" || is_stopping
}

# is_awaited - does whoever has started this script still wait for its answer? sshd's process ends with the connection; where a channel alone is
# closed, nobody reads our standard output any more. Only perl can ask that without writing, and every Proxmox VE has it.
is_awaited() {
  local status=0
  # Without the first of them, sshd's own service: an update restarts it, and its connections stay.
  [[ "$(starters)" == "${STARTED_BY% * }"* ]] || return 1
  perl -MIO::Poll=POLLOUT,POLLERR,POLLHUP -e 'my $poll = IO::Poll->new; $poll->mask(\*STDOUT => POLLOUT); $poll->poll(0);
    exit($poll->events(\*STDOUT) & (POLLERR | POLLHUP) ? 9 : 0)' 2>/dev/null || status=$?
  ((status != 9))
}
