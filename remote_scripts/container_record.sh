#!/usr/bin/env bash
# What is noted of a container (lib/container/record.sh) goes with it to another node of the cluster.
# Needs: container/record
#
# Arguments: CTID, NOTES (base64 of a tar archive of it; for `take`).
# Changes: /var/lib/homelab/containers/CTID. `take` writes what an earlier run has not; `forget` undoes it.
# Verbs: give (changes nothing), take, forget.
# Answer: {"record": of `give`, as NOTES; empty: nothing is noted}.

give() {
  local record=''
  [[ ! -e $ROOT$(record_dir)/wanted ]] || record=$(tar -C "$ROOT$(record_dir)" -c . | base64 -w 0)
  answer "$record"
}

take() {
  local dir temporary
  take_lock
  dir=$ROOT$(record_dir) temporary=$ROOT/var/lib/homelab/containers/.$CTID.homelab-tmp
  if [[ ! -e $dir/wanted ]]; then
    rm -rf "$temporary"
    need_dir "$temporary"
    if ! base64 -d <<<"$NOTES" | tar -C "$temporary" -x --no-same-owner || [[ ! -e $temporary/wanted ]]; then
      rm -rf "$temporary"
      die "what is noted of container $CTID written on this host" "it isn't whole, or there is no room for it" \
        "by it the container's lines are known to be this program's" "see the log above, then run \`pulumi up\` again"
    fi
    rm -rf "$dir"
    sync -f "$temporary"
    mv -T "$temporary" "$dir"
    sync "${dir%/*}/"
  fi
  finish
  answer ''
}

forget() {
  take_lock
  rm -rf "$ROOT$(record_dir)"
  finish
  answer ''
}

answer() { printf '{"record":%s}\n' "$(json_string "$1")"; } # NOTES

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
