#!/usr/bin/env bash
# Which distribution this is.
#
# Needs: lines
#
# Gives: find_os_value KEY -> OS_VALUE.

# find_os_value KEY - sets OS_VALUE: a value of os-release; nothing where it has none.
find_os_value() {
  local file=$ROOT/etc/os-release
  [[ -r $file ]] || file=$ROOT/usr/lib/os-release
  find_first "$file" "^$1=[\"']?([^\"']*)[\"']?\$"
  OS_VALUE=$FIRST
}
