"""The timer of a boot on trial, whose program (files/rollback.sh) restarts one that nobody confirmed."""

from __future__ import annotations

from remote_scripts import installed
from remote_scripts.tools import boot_service
from remote_scripts.tools.files import HOME
from remote_scripts.tools.system import System

TIMER = boot_service.Timer("homelab-rollback", f"{HOME}/rollback")

_SERVICE_TEXT = """\
# Written by homelab: restarts a boot on trial that nobody confirmed. Gone once it is confirmed.
[Unit]
Description=homelab: end the boot on trial, unless it is in order
ConditionPathExists=/var/lib/homelab/rollback
RequiresMountsFor=/var/lib/homelab
# Not stopped by a shutdown: it forces one that hangs.
DefaultDependencies=no

[Service]
Type=oneshot
ExecStart=/bin/sh /var/lib/homelab/rollback {after}
Restart=on-failure
RestartSec=10
"""
_TIMER_TEXT = """\
# Written by homelab: see homelab-rollback.service.
[Unit]
Description=homelab: wait for the boot to be confirmed
# Started first of all: a boot that ends in emergency mode, since a disk is gone, starts no other timer.
DefaultDependencies=no
Conflicts=shutdown.target
Before=shutdown.target

[Timer]
# From systemd's start on: an initramfs may wait for the passphrase of a disk for as long as it likes.
OnStartupSec={after}s
AccuracySec=1s
"""


def put(system: System, after: int) -> None:
    """Puts it there for the next boot, as `undo` finds it.

    :param after: seconds from a boot's start until it is looked at.
    :raises OSError: it can't be written.
    """
    timer, service = (text.format(after=after) for text in (_TIMER_TEXT, _SERVICE_TEXT))
    system.files.remember(*reversed(TIMER.paths))
    TIMER.put(system, timer, service, f"{installed.TEXTS['rollback']}\n".encode())
