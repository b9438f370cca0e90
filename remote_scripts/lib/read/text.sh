#!/usr/bin/env bash
# A file of this host as a JSON string.
# Needs: common, text
#
# Gives: string_of PATH.

# string_of PATH - its text, without empty lines at its end; empty when it isn't there.
string_of() {
  local TEXT
  read_text "$ROOT$1"
  cut_end "$TEXT"
  json_string "$TEXT"
}
