#!/usr/bin/env bash
# The kernel that runs.
# Needs: common
#
# Gives: find_running -> RUNNING; find_architecture -> ARCHITECTURE.

# find_running - sets RUNNING: as `uname -r` says it, which takes it from there.
find_running() { { read -r RUNNING <"$ROOT/proc/sys/kernel/osrelease"; } 2>/dev/null || RUNNING=$(uname -r); }

# find_architecture - sets ARCHITECTURE: as `uname -m` says it. Older kernels have no file for it, and a container of 32 bits (`arch: i386`) is told
# so by uname alone: PER_LINUX32 of personality(2).
find_architecture() {
  local how
  { read -r how <"$PROCESS/personality" && [[ $how == *00 ]] && read -r ARCHITECTURE <"$ROOT/proc/sys/kernel/arch"; } 2>/dev/null || ARCHITECTURE=$(uname -m)
}
