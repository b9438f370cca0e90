#!/usr/bin/env bash
# What is noted of a container (lib/container/record.sh) goes with it to another node of the cluster.
# Needs: container/record
#
# Arguments: CTID, NOTES (base64 of a tar archive of it; for `take` and `forget`).
# Changes: /var/lib/homelab/containers/CTID. `take` writes what is given, and keeps the lines that are noted as ours here already; `forget` undoes it,
#   if it is still what was given.
# Verbs: give (changes nothing), take, forget.
# Answer: {"record": of `give`, as NOTES; empty: nothing is noted}.

give() {
  local record=''
  ! is_noted "$ROOT$RECORDS/$CTID" || record=$(archived)
  answer "$record"
}

# is_noted DIR - is anything noted that goes along? A run that was cut short has noted lines as ours, and not yet what is wanted.
is_noted() { [[ -e $1/ours || -e $1/wanted ]]; }

# archived - the same record is always the same text. A configuration that could be put back is one of the node that the container has left.
archived() {
  local without=()
  [[ ! -e $ROOT$RECORDS/$CTID/ran ]] || find_why_not_owed
  [[ -z ${WHY:-} ]] || without=(--exclude=./ran)
  tar -C "$ROOT$RECORDS/$CTID" "${without[@]}" --exclude=./before --exclude=./after --exclude='./*_before' --exclude=./mounted \
    --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=u=rwX,go= -c . | base64 -w 0
}

take() {
  local dir temporary given name
  take_lock
  dir=$ROOT$RECORDS/$CTID temporary=$ROOT$RECORDS/.$CTID.homelab-tmp
  given=$ROOT$RECORDS/.$CTID.given.homelab-tmp
  rm -rf "$temporary" "$given"
  unpack "$temporary"
  if [[ -e $dir/ours ]]; then # of a run that was cut short, or of when it was here before: these lines are ours as well
    awk '!seen[$0]++' "$temporary/ours" "$dir/ours" >"$temporary/both" || not_taken "$temporary"
    mv -fT "$temporary/both" "$temporary/ours"
  fi
  take_ran_along "$temporary/ran" || not_taken "$temporary"
  sync -f "$temporary"
  rm -rf "$dir"
  mv -T "$temporary" "$dir"
  sync "${dir%/*}/"
  # The other node forgets its own next: what is here now is read back.
  unpack "$given"
  while IFS= read -r name; do
    if [[ $name == ran ]]; then
      : # by this node's boot
    elif [[ $name == ours ]]; then
      [[ -z $(comm -23 <(sort -u "$given/ours") <(sort -u "$dir/ours")) ]]
    else
      cmp -s "$given/$name" "$dir/$name"
    fi || not_taken "$given"
  done < <(find "$given" -type f -printf '%P\n')
  rm -rf "$given"
  finish
  answer ''
}

unpack() { # DIR
  need_dir "$1"
  base64 -d <<<"$NOTES" | tar -C "$1" -x --no-same-owner || not_taken "$1"
  is_noted "$1" || not_taken "$1"
  touch "$1/ours"
}

not_taken() { # DIR
  rm -rf "$1"
  die "what is noted of container $CTID written on this host" "it isn't whole, or there is no room for it" \
    "by it the container's lines are known to be this program's" "see the log above, then run \`pulumi up\` again"
}

forget() {
  take_lock
  if is_noted "$ROOT$RECORDS/$CTID" && [[ $(archived) != "$NOTES" ]]; then
    die "what was noted of container $CTID forgotten here, since it is noted on the node that the container is on now" "it has changed meanwhile" \
      "what is noted here alone would be lost; it stays" "see who else works on this host, then run \`pulumi up\` again"
  fi
  rm -rf "$ROOT${RECORDS:?}/${CTID:?}"
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
