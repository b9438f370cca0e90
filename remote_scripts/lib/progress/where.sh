#!/usr/bin/env bash
# How far a long command is, by what it says and by the files that it makes.
#
# Gives: progress_of LOG SECONDS -> PROGRESS; of_download, of_build, shortened.

# progress_of LOG SECONDS - what apt says of itself (APT::Status-Fd: dlstatus:N:PERCENT:TEXT while it fetches, pmstatus:PACKAGE:PERCENT:TEXT
# while it installs), how far DKMS's compiler is; nothing
# where none of that can be told.
progress_of() {
  local last percent left file
  last=$(tail -n 1 "$1.status" 2>/dev/null) || last=''
  PROGRESS=''
  # Not of somebody's build of long ago: only what installs something has a file of its state.
  [[ -e $1.status ]] || return 0
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
