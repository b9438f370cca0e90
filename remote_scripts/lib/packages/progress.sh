#!/usr/bin/env bash
# Where a long command is, for a person; and the log of this system that has all that such commands say.
# Needs: files, proxy
#
# Gives: open_step_log TEXT; follow LOG; progress_of LOG -> PROGRESS; drop_step_log. Variables: STEP_LOG; DOING (what is being installed,
#   such as "CUDA toolkit 12.8"), DOWNLOADED (a file, with ROOT, that curl is writing).
STEP_LOG=/run/homelab/steps # in memory, and root's alone: nothing of a step that failed stays on a disk
STEP_LOG_BYTES=2097152
PROGRESS_SECONDS=${PROGRESS_SECONDS:-5}
DOING=${DOING:-packages}
DOWNLOADED=''

# open_step_log TEXT - a heading; of a log that has grown too long the end is kept. That there is no room for it stops nobody.
open_step_log() {
  {
    (umask 077 && : >>"$ROOT$STEP_LOG") &&
      if (($(stat -c %s "$ROOT$STEP_LOG") > STEP_LOG_BYTES)); then
        (umask 077 && tail -c $((STEP_LOG_BYTES / 2)) "$ROOT$STEP_LOG" >"$ROOT$STEP_LOG.old") && mv -f "$ROOT$STEP_LOG.old" "$ROOT$STEP_LOG"
      fi
    printf '%s %s: %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$DOING" "$(masked "$1")" >>"$ROOT$STEP_LOG"
  } 2>/dev/null || :
}

# drop_step_log - nothing of ours is left here whose log it would be.
drop_step_log() {
  [[ -n $(find "$STATE/steps" -type f 2>/dev/null) ]] || rm -f "$ROOT$STEP_LOG" "$ROOT$STEP_LOG.old"
}

# follow LOG - the lines of standard input, which are LOG's as they come, into this system's log; of those that were written over (dpkg's
# counting) the last state. Every PROGRESS_SECONDS a person is told where it is.
follow() {
  local line part='' waits='' status told=$SECONDS began=$SECONDS
  while :; do
    status=0
    IFS= read -r -t "$PROGRESS_SECONDS" line || status=$?
    ((status == 0 || status > 128)) || break
    if ((status == 0)); then
      line=$part$line part=''
      line=${line%$'\r'}
      # Who has apt's lock is worth a line at once.
      [[ $line != "Waiting for cache lock"* || $line == "$waits" ]] || log "$line"
      [[ $line != "Waiting for cache lock"* ]] || waits=$line
      printf '  %s\n' "$(masked "${line##*$'\r'}")" >>"$ROOT$STEP_LOG" 2>/dev/null || :
    else
      part+=$line # the rest of it is still to come
    fi
    if ((SECONDS - told >= PROGRESS_SECONDS)); then
      told=$SECONDS
      progress_of "$1"
      log "$DOING: ${PROGRESS:-$((SECONDS - began)) s}"
    fi
  done
}

# progress_of LOG - what apt says of itself (APT::Status-Fd: dlstatus:N:PERCENT:TEXT while it fetches, pmstatus:PACKAGE:PERCENT:TEXT
# while it installs), how far DKMS's compiler is, how much of a file is there; nothing where none of that can be told.
progress_of() {
  local last percent left file
  PROGRESS=''
  last=$(tail -n 1 "$1.status" 2>/dev/null) || last=''
  file=$(find "$ROOT"/var/lib/dkms/nvidia*/*/build -maxdepth 1 -name make.log 2>/dev/null | tail -n 1) || file=''
  if [[ $last == dlstatus:*:*:* ]]; then
    IFS=: read -r _ _ percent left <<<"$last"
    PROGRESS=$(of_download "$1" "$percent")
    [[ ! $left =~ \((.+)\ remaining\) ]] || PROGRESS+=", $(shortened "${BASH_REMATCH[1]}") left"
  elif [[ -n $file ]]; then
    PROGRESS=$(of_build "$file")
  elif [[ $last == pmstatus:*:*:* ]]; then
    IFS=: read -r _ _ percent _ <<<"$last"
    PROGRESS="installing, ${percent%%.*} %"
  elif [[ -n $DOWNLOADED && -e $DOWNLOADED ]]; then
    PROGRESS="$(($(stat -c %s "$DOWNLOADED") / 1000000)) MB are there"
  fi
}

# of_download LOG PERCENT - `1.9 of 4.1 GB`, by what apt-get says that it needs.
of_download() {
  awk -v percent="$2" '
    /^Need to get / { n = $4; gsub(/,/, "", n); split("B kB MB GB", units, " "); unit = $5; sub(/\/.*/, "", unit)
      bytes = n; for (i = 1; i <= 4 && units[i] != unit; i++) bytes *= 1000 }
    END {
      if (bytes >= 1e9) printf "%.1f of %.1f GB", bytes * percent / 1e11, bytes / 1e9
      else if (bytes >= 1e6) printf "%d of %d MB", bytes * percent / 1e8, bytes / 1e6
      else printf "%d %%", percent
    }' "$1"
}

# of_build MAKE_LOG - `building the module for 6.17.2: 40 %`, by the C files that there are and those that were compiled.
of_build() {
  local kernel compiled all
  kernel=$(sed -nE '1,3s/.* for kernel ([^ ]+).*/\1/p' "$1")
  compiled=$(grep -cE '^[[:space:]]*CC ' "$1") || :
  all=$(find "${1%/*}" -name '*.c' | wc -l)
  printf 'building the module%s' "${kernel:+ for $kernel}"
  ((all == 0 || compiled > all)) || printf ': %s %%' $((100 * compiled / all))
}

# shortened TIME - apt's `1h 2min 3s` without what nobody needs to know.
shortened() {
  case $1 in
    *h*) printf '%s h' "${1%%h*}" ;;
    *min*) printf '%s min' "${1%%min*}" ;;
    *s) printf '%s s' "${1%s}" ;;
    *) printf '%s' "$1" ;;
  esac
}
