#!/usr/bin/env bash
# Is this host reached as it was when the switch was armed?
# Needs: switch, switch/reached
#
# Gives: judge, which says how, or what doesn't hold. Variables: ROLLBACK_AFTER.

# judge - says how this host is reached, or what of it doesn't hold, and fails then. What held when the switch was armed has to.
judge() {
  local deadline=$((SECONDS + ROLLBACK_AFTER / 10)) wanted
  wanted=$(switch_note armed address)
  if [[ -z $wanted ]]; then
    printf 'it is not known over which address this host is reached'
    return 1
  fi
  until is_reached "$wanted"; do
    if ((SECONDS >= deadline)); then
      printf '%s' "$VERDICT"
      return 1
    fi
    sleep 1
  done
  printf '%s' "$VERDICT"
}

# is_reached ADDRESS - sets VERDICT.
is_reached() {
  local port old asked=', its gateway was not asked, since none answered when it was configured' heard
  ADDRESS=$1
  INTERFACE=$(interface_of "$ADDRESS")
  if [[ -z $INTERFACE ]]; then
    VERDICT="no interface that is up has $ADDRESS, over which it was configured ($(switch_note armed interface) had)"
    return 1
  fi
  port=$(switch_note armed port)
  heard=", whether sshd listens was not asked, since nothing did on port $port when it was configured"
  if [[ $(switch_note armed listens) == yes ]]; then
    heard=", and sshd listens on port $port"
    if ! listens "$port"; then
      VERDICT="nothing listens on port $port, on which sshd did when it was configured"
      return 1
    fi
  fi
  old=$(switch_note armed gateway)
  if [[ -n $old ]]; then
    GATEWAY=$(answering_gateway)
    if [[ -z $GATEWAY ]]; then
      VERDICT="no default gateway answers, and $old did when it was configured"
      return 1
    fi
    asked=", its gateway $GATEWAY answers"
  fi
  VERDICT="$INTERFACE is up with $ADDRESS$asked$heard"
}
