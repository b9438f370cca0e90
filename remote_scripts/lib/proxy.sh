#!/usr/bin/env bash
# The proxy, which may have a user and a password in its address: in no command line, in no message.
# Needs: text
#
# Gives: masked TEXT -> TEXT; with_proxy COMMAND... Variables: PROXY.
PROXY=${PROXY:-}

# masked TEXT - sets TEXT: it without the user and the password of any address, and without this run's own proxy's wherever they stand.
masked() {
  local user
  TEXT=$1
  if [[ $PROXY == *@* ]]; then
    user=${PROXY%@*} user=${user#*://}
    TEXT=${TEXT//"$user"/(secret)}
    [[ $user != *:?* ]] || TEXT=${TEXT//"${user#*:}"/(secret)}
  fi
  [[ $TEXT == *://*@* ]] || return 0
  TEXT=$(printf '%s\nx' "$TEXT" | sed -E "$NO_SECRETS")
  TEXT=${TEXT%$'\n'x}
}

# with_proxy COMMAND... - in this program's environment alone, never on a command line.
with_proxy() {
  if [[ -n $PROXY ]]; then
    http_proxy=$PROXY https_proxy=$PROXY "$@"
  else
    "$@"
  fi
}
