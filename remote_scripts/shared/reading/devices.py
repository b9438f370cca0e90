"""A host's PCI functions, its modules, and what else than this program binds devices."""

from __future__ import annotations

import re
from dataclasses import dataclass

from remote_scripts.shared import vfio_ids
from remote_scripts.shared.pci import DEVICES
from remote_scripts.shared.reading.answer import Device
from remote_scripts.shared.reading.source import ADDRESS, Source, deepest, lines_of

_EXPRESS = re.compile(r".*\] Express (?:\(v[0-9]+\) )?(.*?)(?: *[,(].*)?$")
_KIND = re.compile(r"[a-z/ -]+")
_BUILT_IN = ("vfio", "vfio_iommu_type1", "vfio_pci")
# Where configuration may speak of vfio-pci in ways from which nothing is concluded; elsewhere there may be a share that
# is gone.
_MENTIONED = (
    *(f"/etc/{name}" for name in ("driverctl.d", "udev/rules.d", "initramfs-tools/scripts")),
    *(f"/etc/{name}" for name in ("systemd/system", "rc.local", "crontab", "cron.d")),
    "/var/spool/cron/crontabs",
)
_OF_CARDS = re.compile(
    r"\s*(?:blacklist|install|softdep|options|alias)\s+"
    r"(?:lbm-)?(?:nvidia|nouveau|nova|radeon|amdgpu|i915|xe|snd_hda_intel|vfio|kvm)[\w-]*(?:\s|$)"
)
_LOADED_AT_BOOT = re.compile(r"\s*(?:nvidia|nouveau|vfio|kvmgt|vendor[_-]reset)[\w-]*(?:\s|$)")
_HOMELABS = "/etc/modprobe.d/homelab-"
# Of Proxmox VE's own file, which each host has, and to which guides add lines.
_PROXMOXS = ("/etc/modprobe.d/pve-blacklist.conf", "blacklist nvidiafb")


@dataclass(frozen=True)
class BoundByOthers:
    """What others give to vfio-pci. `files`: file -> ids; `mentions`: files that speak of it in another
    way; `overrides`: of driverctl, an address -> any other driver that it
    gives the function to; `module_lines`: lines about cards' drivers, of modprobe.d and of
    the lists of modules that are loaded at boot.
    """

    files: dict[str, str]
    mentions: list[str]
    overrides: dict[str, str]
    module_lines: list[str]


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
            kind = express[1].lower()
            by_address[address] = (by_address[address][0], kind if _KIND.fullmatch(kind) else "")
    return by_address


def modules(source: Source) -> list[str]:
    """Those that matter to cards; what is built into the kernel is loaded."""
    names = [line.partition(" ")[0] for line in source.lines("/proc/modules")]
    loaded = [name for name in names if name == "nouveau" or name.startswith(("vfio", "nvidia", "nova"))]
    return loaded + [name for name in _BUILT_IN if name not in loaded and source.exists(f"/sys/module/{name}")]


def bound_by_others(source: Source) -> BoundByOthers:
    """What is on the command line is seen there."""
    folder = "/etc/driverctl.d"
    driverctl = [path for name in source.names(folder) if source.is_file(path := f"{folder}/{name}")]
    speaking = {*driverctl, *(path for place in _MENTIONED for path in source.below(place, hidden=True))}
    files: dict[str, list[str]] = {}
    for path in _files_with_options(source):
        if ids := vfio_ids.given(path, source.needed(path) or ""):
            files[path] = ids
    mentions = []
    overrides: dict[str, str] = {}
    for path in sorted(speaking):
        # What cannot be read of driverctl's may hold a card.
        text = source.needed(path) if path in driverctl else source.text(path)
        if vfio_ids.NAME.search(text or "") and "/homelab-" not in path:
            mentions.append(path)
        elif path in driverctl and (text or "").strip():
            overrides[path.rpartition("/")[2].removeprefix("pci-")] = (text or "").strip()
    return BoundByOthers(
        {path: ",".join(ids) for path, ids in files.items()},
        mentions,
        overrides,
        _module_lines(source),
    )


def _module_lines(source: Source) -> list[str]:
    paths = [path for path in _files_with_options(source) if not path.startswith(_HOMELABS)]
    lines = [
        (path, line)
        for path in paths
        if path != vfio_ids.MODULES
        for line in source.lines(path)
        if _OF_CARDS.match(line) and (path, line.strip()) != _PROXMOXS
    ]
    folder = "/etc/modules-load.d"
    lists = [
        vfio_ids.MODULES,
        "/etc/modules",
        *(f"{folder}/{name}" for name in source.names(folder) if name.endswith(".conf")),
    ]
    lists = [path for path in lists if not source.is_link(path)]  # modules.conf there is Debian's, to /etc/modules
    lines += [(path, line) for path in lists for line in source.lines(path) if _LOADED_AT_BOOT.match(line)]
    return [f"{path}: {' '.join(line.split())}" for path, line in lines]


def _files_with_options(source: Source) -> list[str]:
    """The files that may give options to modules. A link to /dev/null, which is no file, masks one."""
    return [path for path in (*source.modprobe_files(), vfio_ids.MODULES) if source.is_file(path)]
