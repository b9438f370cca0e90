#!/usr/bin/env bash
# Does this system go down?
# Needs: common
#
# Gives: is_stopping.

# is_stopping - it goes down or restarts. A VM that ends then ends with its host, no job that would start something is taken any more, and a restart
# needs no second one.
is_stopping() { [[ $(exec_within "$ASK_SECONDS" systemctl is-system-running 2>/dev/null) == stopping ]]; }
