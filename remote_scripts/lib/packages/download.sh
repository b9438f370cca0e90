#!/usr/bin/env bash
# A file fetched by https, whole or not at all.
# Needs: packages/running
#
# Gives: download URL FILE. Variables: DOWNLOAD_SECONDS.

# download URL FILE - by https alone, redirections too. FILE (without ROOT) is there only when all of it is; a broken transfer goes on where it ended, in the next run, too.
download() {
  local url=$1 file=$2 part=$2.part log_file=$LOGS/download try status=0 until
  need_dir "$ROOT${file%/*}"
  log "downloading $url"
  until=$((SECONDS + ${DOWNLOAD_SECONDS:-1800}))
  DOWNLOADED=$ROOT$part
  for try in 1 2 3 4 5; do
    ((SECONDS < until)) || break
    status=0
    run_streamed "$((until - SECONDS + 5))" "$log_file" curl -fsSL --proto =https --proto-redir =https --connect-timeout 20 --max-time "$((until - SECONDS))" -C - -o "$ROOT$part" "$url" ||
      status=$?
    case $status in
      0)
        DOWNLOADED=''
        in_place "$ROOT$part" "$file"
        return 0
        ;;
      # The server doesn't go on from there: an old part is longer than the file, or the file has changed. From the beginning, then.
      22 | 33 | 36)
        [[ $try == 1 && -e $ROOT$part ]] || break
        rm -f "$ROOT$part"
        ;;
      # Cut off, or no answer: once more.
      7 | 18 | 28 | 35 | 52 | 55 | 56 | 92) sleep "$((try > 1 ? try : 0))" ;;
      *) break ;;
    esac
  done
  explain "$log_file" "$url" "it is to be installed" \
    "see whether that address answers from this system (\`curl -I\`); set nvidia.proxy or nvidia.mirror if it must be another way"
}
