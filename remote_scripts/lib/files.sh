#!/usr/bin/env bash
# Files that are written whole, are on the disk before anything goes on from there, and can be given back.
# Needs: lock, files/ours, files/undo, files/planned
#
# STATE (/var/lib/homelab) holds what `revert` needs: files/<layer>/<path> says that we wrote the path (mode, SHA-256; maybe those before),
# kept/<path> is what we found there, sums/<path> is the SHA-256 of that copy, dirs lists the directories that we made, pending/ the steps
# that must still follow, cmdline/ what we put on /etc/kernel/cmdline. It is gone when nothing is managed any more.
#
# A run may end at any command, killed or by a power cut. The next one goes on from what is on the disk then; so
# - copy, sum, record and file are written in this order and taken away in the opposite one, also by `undo`, each flushed before the next:
#   a file is ours only while a record says so, and whatever it replaced is kept, whole, before that;
# - .NAME.homelab-tmp (what NAME will be) and folders .homelab-undo (what files were) are there only while a run works.
