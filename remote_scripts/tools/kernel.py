"""The kernel that runs, its boot, and the files in which its modules get options."""

from __future__ import annotations

import errno
from collections.abc import Callable

from remote_scripts.tools.system import System

_RELEASE, _BOOT_ID = "/proc/sys/kernel/osrelease", "/proc/sys/kernel/random/boot_id"

# Where modprobe looks, in this order (libkmod/libkmod.c, default_config_paths); /lib is a link to /usr/lib.
_MODPROBE = ("/etc/modprobe.d", "/run/modprobe.d", "/usr/local/lib/modprobe.d", "/usr/lib/modprobe.d")

# Of the kernel's log.
_LOG_BYTES = 1 << 24


def running(system: System) -> str:
    """Its release, as `uname -r` says it.

    :raises OSError: it can't be read.
    """
    release = system.files.line(_RELEASE) or system.run.ask("uname", "-r").text
    if not release:
        raise OSError(errno.EIO, "it can't be read", _RELEASE)
    return release


def boot_id(system: System) -> str:
    """Which boot this is; empty where the kernel doesn't tell it."""
    return system.files.line(_BOOT_ID)


def need_boot_id(system: System) -> str:
    """Which boot this is.

    :raises OSError: the kernel doesn't tell it.
    """
    if id := boot_id(system):
        return id
    raise OSError(errno.EIO, "it can't be read", _BOOT_ID)


def log(system: System) -> list[str]:
    """The lines of its log since it booted, whole where the journal has it: the latest may not be there yet."""
    done = system.run.ask("journalctl", "-k", "-b", "-q", "--no-pager", "-o", "short-monotonic", limit=_LOG_BYTES)
    return done.text.split("\n") if done.status == 0 and done.text else ring(system)


def ring(system: System) -> list[str]:
    """The lines of its log that it has still, to the latest."""
    done = system.run.ask("dmesg", limit=_LOG_BYTES)
    return done.text.split("\n") if done.status == 0 and done.text else []


def modprobe_files(names: Callable[[str], list[str]]) -> list[str]:
    """The files in which modules get options, in modprobe's order; of each name the first folder's.

    :param names: what is in a folder.
    """
    paths: dict[str, str] = {}
    for folder in _MODPROBE:
        for name in names(folder):
            if name.endswith(".conf") and not name.startswith("."):
                paths.setdefault(name, f"{folder}/{name}")
    return [paths[name] for name in sorted(paths)]
