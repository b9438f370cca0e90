#!/usr/bin/env bash
# Versions compared, as `sort -V` has them.
#
# Gives: at_least VERSION FOUND.

# at_least VERSION FOUND - is what was found that version, or a later one?
at_least() { sort -VC <<<"$1"$'\n'"$2"; }
