"""A host's PCI functions, its modules, and what else than this program binds devices."""

from __future__ import annotations

import re

from remote_scripts.boot import vfio_ids
from remote_scripts.reading.answer import Device
from remote_scripts.reading.source import ADDRESS, Source, deepest, lines_of
from remote_scripts.tools.pci import DEVICES

_EXPRESS = re.compile(r".*\] Express (?:\(v[0-9]+\) )?([A-Za-z/ -]+?)(?: *[,(].*)?$")
_BUILT_IN = ("vfio", "vfio_iommu_type1", "vfio_pci")
# Where configuration may speak of vfio-pci in ways from which nothing is concluded; elsewhere there may be a share that
# is gone.
_MENTIONED = (
    *(f"/etc/{name}" for name in ("driverctl.d", "udev/rules.d", "initramfs-tools/scripts")),
    *(f"/etc/{name}" for name in ("systemd/system", "rc.local", "crontab", "cron.d")),
    "/var/spool/cron/crontabs",
)
# What modprobe does in place of loading a module, or loads in its place.
_IN_PLACE = re.compile(r"\s*(?:install|alias)\s+(?:nvidia|vfio)[\w-]*\s")


def devices(source: Source, *, acs: bool) -> list[Device]:
    """Every function.

    :param acs: also what isolates devices, where the host has IOMMU groups already.
    """
    behind: dict[str, list[str]] = {}
    for folder in ("/sys/block", "/sys/class/net"):
        for name in source.names(folder):
            if address := deepest(source.link(f"{folder}/{name}").rpartition("/")[0]):
                behind.setdefault(address, []).append(name)
    # Before there are groups, the bridges' Access Control Services tell how the kernel is going to draw them.
    groups = source.groups()
    isolation = _isolation(source) if acs or not groups else {}

    def device(address: str) -> Device:
        folder = f"{DEVICES}/{address}"

        def word(name: str) -> str:
            return (source.word(f"{folder}/{name}") or "0").removeprefix("0x")

        group = source.linked(f"{folder}/iommu_group")
        isolates, express = isolation.get(address, (False, ""))
        return Device(
            address=address,
            vendor=word("vendor"),
            device=word("device"),
            subsystem=f"{word('subsystem_vendor')}:{word('subsystem_device')}",
            class_code=word("class"),
            boot_vga=word("boot_vga") == "1",
            driver=source.linked(f"{folder}/driver"),
            group=int(group) if group in groups else None,
            acs=isolates,
            path=source.link(folder),
            behind=" ".join(behind.get(address, [])),
            physfn=source.linked(f"{folder}/physfn"),
            vfs=int(vfs) if (vfs := word("sriov_numvfs")).isdecimal() else 0,
            # "fixed" or "unknown" isn't known to be.
            removable=word("removable") == "removable",
            express=express,
            # Of a card that is gone the kernel gives no answer, and nothing is decided by this one.
            lanes=tuple(int(source.files.line(f"{folder}/{name}_link_width") or 0) for name in ("current", "max")),
            speeds=tuple(source.files.line(f"{folder}/{name}_link_speed") for name in ("current", "max")),
        )

    return [device(address) for address in source.functions()]


def _isolation(source: Source) -> dict[str, tuple[bool, str]]:
    """Of each function whether it has Access Control Services, and which kind of PCIe device it is."""
    by_address: dict[str, tuple[bool, str]] = {}
    address = ""
    for line in lines_of(source.ask("lspci", "-D", "-vv").text):
        if match := re.match(rf"{ADDRESS}\b", line):
            address = match[0]
            by_address[address] = (False, "")
        elif address and "Access Control Services" in line:
            by_address[address] = (True, by_address[address][1])
        elif address and "Capabilities: [" in line and (express := _EXPRESS.match(line)):
            by_address[address] = (by_address[address][0], express[1].lower())
    return by_address


def modules(source: Source) -> list[str]:
    """Those that matter to cards; what is built into the kernel is loaded."""
    names = [line.partition(" ")[0] for line in source.lines("/proc/modules")]
    loaded = [name for name in names if name == "nouveau" or name.startswith(("vfio", "nvidia", "nova"))]
    return loaded + [name for name in _BUILT_IN if name not in loaded and source.files.exists(f"/sys/module/{name}")]


def vfio_files(source: Source) -> dict[str, str]:
    """The files of others that give ids to vfio-pci, with the ids. What is on the command line is seen there."""
    # A link to /dev/null, which is no file, masks one of modprobe.d.
    there = [path for path in (*source.modprobe_files(), vfio_ids.MODULES) if source.files.is_file(path)]
    files = {path: vfio_ids.given(path, source.needed(path) or "") for path in there}
    return {path: ",".join(ids) for path, ids in files.items() if ids}


def vfio_mentions(source: Source) -> list[str]:
    """The files that speak of vfio-pci in any other way, and aren't this program's."""
    paths = sorted({path for place in _MENTIONED for path in source.below(place, hidden=True)})
    return [path for path in paths if "/homelab-" not in path and vfio_ids.NAME.search(source.files.text(path))]


def module_lines(source: Source) -> list[str]:
    """The lines of modprobe.d that may keep modules from being loaded by their names, `PATH: LINE`."""
    return [
        f"{path}: {' '.join(line.split())}"
        for path in source.modprobe_files()
        for line in source.lines(path)
        if _IN_PLACE.match(line)
    ]
