#!/usr/bin/env bash
# What `destroy` needs about things that aren't files of this host (a VM's options, a PCI mapping), kept on the host as well as in
# Pulumi's state: a stack whose state was lost takes over by it what is ours.
# Needs: files
#
# Arguments: NAME (such as vm/103), NOTE (one line of JSON; empty: forget what is noted), KEEP (yes: what is noted already stays).
# Changes: /var/lib/homelab/ledger/NAME. Undone by `apply` with an empty NOTE.
# Output: {"note": what is noted now}.
# Verbs: apply; noted, which changes nothing and answers what is noted (empty: nothing).

apply() {
  local file=/var/lib/homelab/ledger/$NAME
  take_lock
  if [[ -z $NOTE ]]; then
    remove_file "$file"
  elif [[ $KEEP != yes || ! -s $ROOT$file ]]; then
    need_dir "$ROOT${file%/*}"
    write_atomically "$file" 0600 printf '%s\n' "$NOTE"
  else
    NOTE=$(<"$ROOT$file")
  fi
  finish
  printf '{"note":%s}\n' "$(json_string "$NOTE")"
}

noted() {
  local file=$ROOT/var/lib/homelab/ledger/$NAME
  NOTE=''
  [[ ! -s $file ]] || NOTE=$(<"$file")
  printf '{"note":%s}\n' "$(json_string "$NOTE")"
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
