"""EFI system partitions, mounted for as long as something is done there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from remote_scripts.tools import disk
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

_SECONDS = 60.0
# How long another run is waited for: it may make a menu there.
_TURN_SECONDS = 120.0


@contextmanager
def mounted(system: System, uuids: Iterable[str]) -> Iterator[dict[str, str]]:
    """UUID -> the folder that it is mounted on. One that isn't there is passed over: a disk may be unplugged. One run
    at a time has them: a kernel's hook and a boot's confirmation come without the host's lock, and would unmount them
    under a run that writes there.

    :raises Failure: one that is there can't be mounted; another run has them for too long.
    """
    folders: dict[str, str] = {}
    with system.work.alone("boot-mounts", _TURN_SECONDS, "the EFI system partitions mounted"):
        try:
            for uuid in dict.fromkeys(uuids):
                device, folder = f"/dev/disk/by-uuid/{uuid}", f"/run/homelab/esp-{uuid}"
                if not system.files.exists(device):
                    continue
                if os.path.ismount(system.files.at(folder)):  # of a run that was killed
                    _unmount(system, folder)
                system.files.need_folder(folder)
                done = system.run.do("mount", system.files.name(device), system.files.name(folder), seconds=_SECONDS)
                if done.status != 0:
                    raise Failure(
                        f"to mount the EFI system partition {uuid}",
                        done.text,
                        "this host's boot loader reads there what it starts next",
                        f"see `dmesg | tail` and mend {device}, or take its disk out; then run the same again",
                    )
                folders[uuid] = folder
                system.files.clear_below(folder)  # of a run that was killed
            yield folders
        finally:
            for folder in folders.values():
                system.files.clear_below(folder)
                _unmount(system, folder)


def _unmount(system: System, folder: str) -> None:
    done = system.run.do("umount", system.files.name(folder), seconds=_SECONDS)
    if done.status != 0:
        system.log.say(f"{folder} stays mounted: {done.text}")
    with suppress(OSError):
        disk.remove_folder(system.files.at(folder))
