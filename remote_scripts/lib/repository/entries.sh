#!/usr/bin/env bash
# What apt's lists of repositories have.
# Needs: common
#
# Gives: entries_of FILE; other_entry URL SUITE LIST; is_unchecked FILE.

# is_unchecked FILE - has it an entry whose packages apt takes without a good signature?
is_unchecked() {
  local unsigned='(trusted|allow-insecure|allow-weak|allow-downgrade-to-insecure)'
  if [[ $1 == *.sources ]]; then
    grep -qiE "^$unsigned:[[:space:]]*(yes|true|1|on|with)" "$1"
  else
    grep -qiE "^[[:space:]]*deb[[:space:]]+\[[^]]*\b$unsigned=(yes|true|1|on|with)" "$1"
  fi
}

# other_entry URL SUITE LIST - the file that has an entry for this repository, if it isn't LIST.
other_entry() {
  local file line found=no
  for file in "$ROOT"/etc/apt/sources.list "$ROOT"/etc/apt/sources.list.d/*.list "$ROOT"/etc/apt/sources.list.d/*.sources; do
    [[ -r $file && $file != "$ROOT$3" ]] || continue
    while IFS= read -r line; do
      [[ $line != "${1%/} $2" ]] || found=yes
    done < <(entries_of "$file")
    if [[ $found == yes ]]; then
      printf '%s' "${file#"$ROOT"}"
      return 0
    fi
  done
}

# entries_of FILE - ADDRESS SUITE of each enabled entry for binary packages, in either of apt's formats.
entries_of() {
  local line architecture=''
  while IFS= read -r line || [[ -n $line ]]; do
    if [[ $line == *"\$(ARCH)"* ]]; then
      architecture=${architecture:-$(dpkg --print-architecture)}
      line=${line//"\$(ARCH)"/"$architecture"}
    fi
    while [[ $line == *'/ '* ]]; do line=${line/'/ '/ }; done
    printf '%s\n' "$line"
  done < <(written_entries "$1")
}

written_entries() { # FILE - as they stand there
  if [[ $1 == *.sources ]]; then
    awk -v RS= '{
      types = uris = suites = ""; enabled = 1; n = split($0, lines, "\n"); field = ""
      for (i = 1; i <= n; i++) {
        line = lines[i]
        if (line ~ /^#/) continue
        if (line ~ /^[^ \t:]+:/) { field = tolower(substr(line, 1, index(line, ":") - 1)); line = substr(line, index(line, ":") + 1) }
        if (field == "types") types = types " " line
        if (field == "uris") uris = uris " " line
        if (field == "suites") suites = suites " " line
        if (field == "enabled" && tolower(line) ~ /no|false|0/) enabled = 0
      }
      if (!enabled || (types " ") !~ /[ \t]deb[ \t]/) next
      nu = split(uris, u, /[ \t]+/); ns = split(suites, s, /[ \t]+/)
      for (i = 1; i <= nu; i++) for (j = 1; j <= ns; j++) if (u[i] != "" && s[j] != "") print u[i], s[j]
    }' "$1"
  else
    sed -nE 's/#.*//; s/^[[:space:]]*deb[[:space:]]+(\[[^]]*\][[:space:]]+)?([^[:space:]]+)[[:space:]]+([^[:space:]]+).*/\2 \3/p' "$1"
  fi
}
