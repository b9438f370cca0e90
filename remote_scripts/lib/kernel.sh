#!/usr/bin/env bash
# The kernel that runs.
#
# Gives: find_running -> RUNNING; find_architecture -> ARCHITECTURE.

# find_running - sets RUNNING: as `uname -r` says it, which takes it from there.
find_running() { { read -r RUNNING <"$ROOT/proc/sys/kernel/osrelease"; } 2>/dev/null || RUNNING=$(uname -r); }

# find_architecture - sets ARCHITECTURE: as `uname -m` says it. Older kernels have no file for it.
find_architecture() { { read -r ARCHITECTURE <"$ROOT/proc/sys/kernel/arch"; } 2>/dev/null || ARCHITECTURE=$(uname -m); }
