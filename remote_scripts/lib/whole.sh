#!/usr/bin/env bash
# Files whose names tell whether they are whole: NAME.SUM, where SUM is the beginning of the content's SHA-256, 16 hexadecimal digits
# (kept_scripts.sh, homelab/remote/kept_scripts.py).
#
# Gives: whole_files.

# whole_files FOLDER - the names of those in it whose content is what the name says, a line each.
whole_files() {
  (cd "$1" && sha256sum -- *.* 2>/dev/null) |
    awk '{ n = length($2); if (substr($2, n - 16) == "." substr($1, 1, 16)) print $2 }'
}
