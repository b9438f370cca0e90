#!/usr/bin/env bash
# The service that follows the numbers of cards' nodes at each boot.
#
# Gives: CARDS_ENABLED.

# What `systemctl enable` makes of it.
CARDS_ENABLED=/etc/systemd/system/multi-user.target.wants/homelab-card-nodes.service
