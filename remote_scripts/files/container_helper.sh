#!/bin/sh
# What the host's agent has in a container: started once by lxc-attach as `/bin/sh -c TEXT`, it does what standard input asks for, until that ends.
# It decides nothing. dash and busybox have all that it uses. tools/container.py is the other end.
#
# A request is two lines: `MARK SECONDS VERB WORD...`, quoted for sh, and bytes for its standard input, in base64. The answer, on standard output, is
# a line `MARK begin`, what the program says, and a line `MARK STATUS`. MARK is new each time: whatever else is said there is nobody's answer.
PATH=${PATH:+$PATH:}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin LC_ALL=C
export PATH LC_ALL
umask 022
cd / || exit 1

# bytes - of the request.
bytes() { printf %s "$content" | base64 -d; }

# relay - passes lines on until the one that ends the answer; also where nobody listens any more, so that a program isn't stopped in the middle.
relay() {
  trap '' PIPE
  while IFS= read -r said; do
    printf '%s\n' "$said" 2>/dev/null || :
    case $said in "$mark "[0-9]*) return ;; esac
  done
}

while IFS= read -r request && IFS= read -r content; do
  eval "set -- $request"
  mark=$1 seconds=$2 verb=$3
  shift 3
  printf '\n%s begin\n' "$mark"
  case $verb in
    # lock FOLDER - takes the lock that one run at a time has; no program that is started gets it.
    lock)
      # shellcheck disable=SC3067 # dash and busybox have -O
      mkdir -p "$1" && [ ! -L "$1" ] && [ -O "$1" ] && chmod 700 "$1" && exec 9>>"$1/lock" && flock -n 9
      ;;
    unlock) exec 9>&- ;;
    has) command -v "$1" >/dev/null ;;
    test) test "$1" "$2" ;;
    # env NAME VALUE - of all programs from here on.
    env) export "$1=$2" ;;
    # write PATH LENGTH - a new file; none may be there.
    write)
      (
        umask 077
        set -C
        bytes >"$1"
      ) && [ "$(wc -c <"$1")" -eq "$2" ]
      ;;
    # ask PROGRAM WORD... - a question; do PROGRAM WORD... - work, which goes on though nobody listens.
    ask)
      if [ "$content" ]; then bytes | timeout -s KILL "$seconds" "$@" 9>&-; else timeout -s KILL "$seconds" "$@" </dev/null 9>&-; fi
      ;;
    do)
      {
        timeout -s KILL "$seconds" "$@" </dev/null 2>&1 9>&-
        printf '\n%s %s\n' "$mark" "$?"
      } | relay
      continue
      ;;
    *) false ;;
  esac
  printf '\n%s %s\n' "$mark" "$?"
done
