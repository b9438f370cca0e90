#!/usr/bin/env bash
# The folder of the lock and of logs, where root alone can make a file: in one that everybody may write to (/run/lock), anybody could hold
# the lock for ever, or lead what is written elsewhere.
#
# Gives: make_run_dir, owns_run_dir. Variables: RUN.
RUN=$ROOT/run/homelab

# make_run_dir - fails where somebody else's folder, or a link, has its name.
make_run_dir() {
  [[ -d $ROOT/run ]] || mkdir "$ROOT/run"
  owns_run_dir || { mkdir -m 0700 "$RUN" 2>/dev/null && return; } || owns_run_dir || return 1
  chmod 0700 "$RUN"
}

owns_run_dir() { [[ -d $RUN && ! -L $RUN && -O $RUN ]]; }
