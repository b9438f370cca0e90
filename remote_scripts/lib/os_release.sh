#!/usr/bin/env bash
# Which distribution this is.
#
# Gives: os_value KEY.

# os_value KEY - a value of os-release; nothing where it has none.
os_value() {
  local file=$ROOT/etc/os-release
  [[ -r $file ]] || file=$ROOT/usr/lib/os-release
  sed -nE "s/^$1=[\"']?([^\"']*)[\"']?\$/\\1/p" "$file" 2>/dev/null | head -n 1
}
