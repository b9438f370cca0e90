"""What the host can't do without, and the PCI functions on the way to it: disks that its kernel has in use, network
interfaces that are up, its keyboards. What isn't known is named (`trouble`); the caller decides.

What is on a disk doesn't matter: whatever uses the disk (a file system, swap, LVM, md, bcache, an imported pool, btrfs)
has claimed it, or a partition of it, from the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from remote_scripts.boot import boot
from remote_scripts.reading.answer import Vital
from remote_scripts.reading.source import Source, functions_in
from remote_scripts.tools import disk
from remote_scripts.tools.time_limit import within_limit

_BLOCKS, _NETS = "/sys/class/block", "/sys/class/net"
_UP = 1  # IFF_UP (netdevice(7))


def vital(source: Source) -> list[Vital]:
    """All of it."""
    return [*_storage(source), *_network(source), *_keyboards(source)]


def _storage(source: Source) -> Iterator[Vital]:
    mounts = [line.split(" ") for line in (source.needed("/proc/mounts") or "").split("\n")]
    roots = [mount for mount in mounts if mount[1:2] == ["/"]]
    # The last one counts. Only what is on disks claims them.
    if not any(mount[0].startswith("/dev/") or mount[2:3] == ["zfs"] for mount in roots[-1:]):
        yield Vital("storage", "the root file system", [], "/proc/mounts doesn't say which disk it is on")
    esps = _esps(source)
    for name in source.names(_BLOCKS):
        folder = source.files.real(f"{_BLOCKS}/{name}")
        # The second ways to an NVMe disk are hidden: its one name is asked.
        if source.files.exists(f"{folder}/partition") or source.word(f"{folder}/hidden") == "1":
            continue
        functions = _functions_behind(source, folder)
        if functions and (use := _use(source, name)):
            yield Vital("storage", f"the disk {name} ({use})", functions)
        elif functions and any(f"{esp}/".startswith(f"{folder}/") for esp in esps):
            yield Vital("storage", f"the disk {name} (an EFI system partition that the host boots from)", functions)


def _use(source: Source, name: str) -> str:
    """What the kernel says of a disk; empty: nobody has claimed it."""
    try:
        # It may hang where the disk is broken.
        is_claimed = within_limit(lambda: disk.is_claimed(source.files.at(f"/dev/{name.replace('!', '/')}")))
    except OSError as error:
        return f"whether it is in use can't be told: {error.strerror or error}"
    return "in use" if is_claimed else ""


def _esps(source: Source) -> list[str]:
    """Those that proxmox-boot-tool manages, in sysfs: they aren't mounted."""
    uuids = (source.needed(boot.UUIDS) or "").split()
    paths = (path for uuid in uuids if source.files.exists(path := f"/dev/disk/by-uuid/{uuid}"))
    return [source.files.real(f"{_BLOCKS}/{source.files.real(path).rpartition('/')[2]}") for path in paths]


def _functions_behind(source: Source, folder: str) -> list[str]:
    """The PCI functions behind a disk in sysfs: of an NVMe disk with several controllers those of each."""
    above = folder.rpartition("/")[0]
    ways = [folder]
    if "/nvme-subsystem/" in folder:
        ways += [
            source.files.real(f"{above}/{child}") for child in source.names(above) if re.fullmatch(r"nvme[0-9]+", child)
        ]
    return sorted({function for way in ways for function in functions_in(way)})


def _network(source: Source) -> Iterator[Vital]:
    is_any = False
    for name in source.names(_NETS):
        folder = source.files.real(f"{_NETS}/{name}")
        functions = functions_in(folder)
        if not functions or not _is_up(source, folder):
            continue
        is_any = True
        # Without its physical function, a virtual one is gone as well.
        physical = functions_in(source.files.real(f"{folder}/device/physfn"))
        yield Vital("network", f"the network interface {name} (it is up)", sorted({*functions, *physical}))
    if not is_any:
        yield Vital("network", "the network over which this host is reached", [], "no network card is up")


def _is_up(source: Source, folder: str) -> bool:
    flags = source.word(f"{folder}/flags")
    return flags is None or bool(int(flags, 16) & _UP)


def find_use(source: Source, place: str) -> str:
    """What the host uses a device for; empty: nothing is known.

    :param place: a path; or of a USB device what sysfs has of it, with a slash at its end: `/1-4/`, or
        `PRODUCT=bda/8153/`.
    """
    if not place.endswith("/"):
        folder, _, disk_name = source.files.real(place).rpartition("/")
        is_disk = folder == "/dev" and source.files.exists(f"{_BLOCKS}/{disk_name}")
        return _use(source, disk_name) if is_disk else ""
    for name in source.names(_NETS):
        folder = source.files.real(f"{_NETS}/{name}")
        if place in folder + source.files.text(f"{folder}/device/uevent") and _is_up(source, folder):
            return f"the network interface {name} is up"
    for name in source.names(_BLOCKS):
        folder = source.files.real(f"{_BLOCKS}/{name}")
        # Its USB interface, such as .../2-1:1.0, is above its host, target and LUN.
        interface = folder.partition("/host")[0]
        if place in folder + source.files.text(f"{interface}/uevent") and (use := _use(source, name)):
            return f"the disk {name}: {use}"
    return ""


def _keyboards(source: Source) -> list[Vital]:
    """A keyboard has the handlers kbd and sysrq; a power button has the first alone. Virtual ones are nobody's; one at
    a port of its own (PS/2) stays.
    """
    name = path = ""
    keyboards: list[Vital] = []
    for line in source.lines("/proc/bus/input/devices"):
        if line.startswith("N: Name="):
            name = line.removeprefix('N: Name="').removesuffix('"')
        elif line.startswith("S: Sysfs="):
            path = line.removeprefix("S: Sysfs=")
        elif line.startswith("H: Handlers=") and re.search(r"[ =]kbd", line) and "sysrq" in line:
            keyboards += [] if "/virtual/" in path else [Vital("keyboard", name, sorted({*functions_in(path)}), "")]
    return keyboards
