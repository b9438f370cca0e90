#!/usr/bin/env bash
# The proxy, which may have a user and a password in its address: in no command line, in no message.
#
# Gives: masked TEXT; with_proxy COMMAND... Variables: PROXY.

# masked TEXT - without the proxy's user and password.
masked() {
  local text=$1 user
  if [[ ${PROXY:-} == *@* ]]; then
    user=${PROXY%@*} user=${user#*://}
    text=${text//"$user"/(secret)}
    [[ $user != *:?* ]] || text=${text//"${user#*:}"/(secret)}
  fi
  printf '%s' "$text"
}

# with_proxy COMMAND... - in this program's environment alone, never on a command line.
with_proxy() {
  if [[ -n ${PROXY:-} ]]; then
    http_proxy=$PROXY https_proxy=$PROXY "$@"
  else
    "$@"
  fi
}
