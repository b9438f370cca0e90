"""systemd-boot's entries on the ESPs, when a kernel has come or gone: its hook (files/systemd_boot_entry.sh) asks."""

from __future__ import annotations

from remote_scripts.boot.loaders.found import SYSTEMD_BOOT, make_menus
from remote_scripts.both.nothing import Wanted
from remote_scripts.tools.files import Changed
from remote_scripts.tools.system import System


def apply(system: System, _wanted: Wanted) -> Changed:
    """Without the lock: it may be a run of homelab's that installs the kernel.

    :raises Failure: they could not be made, and are as they were.
    """
    make_menus(system, SYSTEMD_BOOT, is_step=False)
    return Changed(True)
