#!/usr/bin/env bash
# Which distribution this is.
#
# Needs: lines
#
# Gives: os_value KEY.

# os_value KEY - a value of os-release; nothing where it has none.
os_value() {
  local file=$ROOT/etc/os-release
  [[ -r $file ]] || file=$ROOT/usr/lib/os-release
  find_first "$file" "^$1=[\"']?([^\"']*)[\"']?\$"
  printf '%s\n' "$FIRST"
}
