#!/usr/bin/env bash
# A file of this host as a JSON string.
# Needs: text
#
# Gives: string_of PATH.

string_of() { json_string "$(of_file "$ROOT$1")"; } # PATH - its text; empty when it isn't there
