#!/usr/bin/env bash
# Packages and downloads: what a layer adds is recorded, and taken away again.
# Needs: packages/installing, packages/removing, packages/download, files
#
# Arguments: NAME (the system, for messages), SYMPTOMS (known failures, a line each; packages/running.sh), PROXY (may hold a password), LOCK_SECONDS,
# DOWNLOAD_SECONDS, INSTALL_SECONDS (nvidia.timeouts), LOCKED (of the lock file, a line for each package: NAME VERSION SHA256; empty: none).
#
# STATE/packages/<layer>: a line for each package that the layer added, changed or removed: NAME, VERSION NOW, VERSION BEFORE, mark
# before (auto or manual), separated by tabs; `-` for a package that isn't there. It is written before apt is called, so that a run which is
# killed leaves nothing unknown behind, and brought to what really is there at the end of a run.
#
# Gives: step_done LAYER, step_undone LAYER.

# step_done LAYER / step_undone LAYER - that a step was carried out here is known from here: a system that was reinstalled, or went back to
# a snapshot, tells of none.
step_done() { mark "/var/lib/homelab/steps/$1"; }

step_undone() { remove_file "/var/lib/homelab/steps/$1"; }
