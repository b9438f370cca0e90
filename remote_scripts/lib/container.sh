#!/usr/bin/env bash
# A container's configuration (/etc/pve/lxc/ID.conf), and the device nodes of cards in it.
# Needs: container/power, container/changes
#
# Proxmox VE writes that file anew whenever it changes something: keys sorted, comments made the description, raw lxc.* lines last,
# and below them a section for what waits for the next start ([pve:pending]) and one for each snapshot. So our lines are found by
# content, never by place. What we added is noted before it is added, in /var/lib/homelab/containers/ID:
#   ours      each line of ours: `dev VALUE` (a dev[n] option, whatever its number), or an lxc.* line as it stands
#   wanted    METHOD, MINORS, FUNCTIONS of the last run, and where there are some, CARDS and the groups inside (`render=104 video=44`), by which
#             layers/read_host.py finds drift, and card_nodes_boot.sh what a boot has moved
#   nodes     of each node that a line of ours gives: path, numbers, whose and which it is, how it is given (record.sh): what a boot follows
#   guest     its name in the settings of the last run: a revert under another one leaves it alone
#   revision  how often the configuration was changed by us
#   restart   is there while the running container still has what was before
#   before    the configuration as it was before the change that waits for a restart; `after`: the digest of what it became. Empty: somebody
#             has changed it since, and nothing is put back
#   ran       is there from before a shutdown until the start that follows it: the container is still to be started, as long as that counts (guest_tasks.sh)
#
#   mounted   is there while a container that is off is looked into
#
# Variables of a container: CTID; METHOD (device | mount-entry), MINORS (numbers of /dev/nvidiaN), FUNCTIONS (addresses of
# NVIDIA's cards' display functions, whose nodes in /dev/dri go along) and CARDS (those of other makers, as card_nodes.sh has them), all
# separated by spaces.
