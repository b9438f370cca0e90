#!/usr/bin/env bash
# What the Proxmox VE API doesn't tell of a file on a storage: the checksums that its maker publishes, and the guests that name it.
# Changes nothing.
# Needs: files
#
# Arguments: URL (of a file of checksums, for `sums`), VOLUME (such as local:iso/virtio-win.iso, for `users`).
# Answer: of `sums` {"sums": the file's text}; of `users` {"users": lines of guests' configurations that name it, each after its file's
#   path below /etc/pve/nodes and a colon}.
# Verbs: sums, users.

sums() {
  local proxy text status=0
  # As Proxmox VE's own downloads go.
  proxy=$(sed -n 's/^http_proxy: *//p' "$ROOT/etc/pve/datacenter.cfg" 2>/dev/null | head -n 1) || :
  text=$(http_proxy=$proxy https_proxy=$proxy wget -q --timeout=30 --tries=3 -O - -- "$URL" 2>/dev/null | head -c 262144) || status=$?
  if ((status != 0)) || [[ -z $text ]]; then
    die "the checksums that an image's maker publishes, from $URL" "$(why_not "$status")" \
      "an image that nothing can be compared with is not downloaded; nothing was changed" \
      "see whether the host reaches the address (\`wget -O - $URL\` there), then run \`pulumi up\` again; or set the download's checksum, or put the image onto the storage yourself and name its volume"
  fi
  printf '{"sums":%s}\n' "$(json_string "$text")"
}

# What wget's exit status means (its manual).
why_not() {
  case $1 in
    0) printf 'an empty file' ;;
    4) printf 'no connection: the name is not known, or nobody answers' ;;
    5) printf 'a certificate that the host does not trust' ;;
    8) printf 'a refusal of the server, such as 404 Not Found' ;;
    *) printf 'exit status %s of wget' "$1" ;;
  esac
}

# Whoever asks removes a file that nobody names: what can't be read may name it.
users() {
  local found status=0 file files=(/dev/null)
  for file in "$ROOT"/etc/pve/nodes/*/{qemu-server,lxc}/*.conf; do [[ ! -e $file && ! -L $file ]] || files+=("${file#"$ROOT/etc/pve/nodes/"}"); done
  found=$(cd "$ROOT/etc/pve/nodes" 2>&1 && grep -aHF -e "$VOLUME" -- "${files[@]}" 2>&1) || status=$?
  ((status <= 1)) && [[ -d $ROOT/etc/pve/nodes ]] || die "to know which guests name $VOLUME" "${found##*$'\n'}" \
    "what can't be read may name it; nothing was removed" "read it on the host yourself (the service pve-cluster serves /etc/pve), mend what keeps it from being read, and run the same command again"
  printf '{"users":%s}\n' "$(json_string "$found")"
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
