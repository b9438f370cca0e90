"""A host's PCI functions, its modules, and what else than this program binds devices."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from functools import partial

from remote_scripts.shared import vfio_ids
from remote_scripts.shared.pci import DEVICES
from remote_scripts.shared.reading.answer import Device
from remote_scripts.shared.reading.source import ADDRESS, Source, deepest, lines_of

_EXPRESS = re.compile(r".*\] Express (?:\(v[0-9]+\) )?(.*?)(?: *[,(].*)?$")
_KIND = re.compile(r"[a-z/ -]+")
_BUILT_IN = ("vfio", "vfio_iommu_type1", "vfio_pci")
# Where configuration may speak of vfio-pci in ways from which nothing is concluded.
_MENTIONED = ("driverctl.d", "udev/rules.d", "initramfs-tools/scripts")


_RULES = "/etc/udev/rules.d"
# A key of udev's rules, with the attribute that it is about.
_RULE_KEY = re.compile(r'(\w+)(?:\{([^}]*)\})?\s*([!=+:-]?=)\s*"([^"]*)"')
_OF_CARDS = re.compile(
    r"\s*(?:blacklist|install|softdep|options|alias)\s+"
    r"(?:lbm-)?(?:nvidia|nouveau|nova|radeon|amdgpu|i915|xe|snd_hda_intel|vfio|kvm)[\w-]*(?:\s|$)"
)
_LOADED_AT_BOOT = re.compile(r"\s*(?:nvidia|nouveau|vfio|kvmgt|vendor[_-]reset)[\w-]*(?:\s|$)")
_HOMELABS = "/etc/modprobe.d/homelab-"
# Of Proxmox VE's own file, which each host has, and to which guides add lines.
_PROXMOXS = ("/etc/modprobe.d/pve-blacklist.conf", "blacklist nvidiafb")
# Where commands that run at a boot are named, and their scripts; elsewhere there may be a share that is gone.
_AT_BOOT = ("systemd/system", "rc.local", "crontab", "cron.d")
_CRONTABS = "/var/spool/cron/crontabs"
_SCRIPT = re.compile(r"(?<![\w./-])/(?:usr/local|root|opt|etc|usr/s?bin|s?bin)/[\w./+-]*[\w+-]")


@dataclass(frozen=True)
class BoundByOthers:
    """What others give to vfio-pci. `files`: file -> ids; `rules`: file of udev's rules -> addresses;
    `mentions`: files that speak of it in another way; `overrides`: of driverctl, an address -> any other driver that it
    gives the function to; `module_lines`: lines about cards' drivers, of modprobe.d and of
    the lists of modules that are loaded at boot.
    """

    files: dict[str, str]
    rules: dict[str, list[str]]
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
    places = (f"/etc/{name}" for name in _MENTIONED)
    speaking = {*driverctl, *(path for place in places for path in source.below(place, hidden=True)), *_at_boot(source)}
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
    rules = {path: _given_by_rules(source, path) for path in mentions if path.startswith(f"{_RULES}/")}
    return BoundByOthers(
        {path: ",".join(ids) for path, ids in files.items()},
        {path: addresses for path, addresses in rules.items() if addresses},
        mentions,
        overrides,
        _module_lines(source),
    )


def _at_boot(source: Source) -> set[str]:
    """What somebody has run at each boot: units, lists of commands, and the scripts that they name."""
    places = (*(f"/etc/{name}" for name in _AT_BOOT), _CRONTABS)
    paths = {path for place in places for path in source.below(place, hidden=True)}
    named = {name for path in paths for name in _SCRIPT.findall(source.text(path))}
    return paths | {name for name in sorted(named) if source.chosen(name, partial(_is_script, source, name), False)}


def _is_script(source: Source, path: str) -> bool:
    return source.is_file(path) and (source.files.read(path, 2) or b"").startswith(b"#!")  # a pipe would be waited for


def _given_by_rules(source: Source, path: str) -> list[str]:
    """The functions for which a file of udev's rules sets vfio-pci as the only driver. A rule with other conditions
    than those of `_meets` isn't judged: its file is mentioned.
    """
    addresses: list[str] = []
    lines = source.text(path).replace("\\\n", " ").split("\n")
    rules = [_RULE_KEY.findall(line) for line in lines if not line.lstrip().startswith("#")]
    if any(key == "GOTO" for keys in rules for key, *_ in keys):  # what a rule is about, others before it say
        return []
    for keys in rules:
        if ("ATTR", "driver_override", "=", "vfio-pci") not in keys:
            continue
        conditions = [(key, name, value) for key, name, operator, value in keys if operator == "=="]
        if any(operator == "!=" for _, _, operator, _ in keys):
            continue
        if not any(key in ("KERNEL", "ATTR") for key, _, _ in conditions):
            continue
        addresses += [
            address
            for address in source.functions()
            if address not in addresses and all(_meets(source, address, *condition) for condition in conditions)
        ]
    return addresses


def _meets(source: Source, address: str, key: str, name: str, value: str) -> bool:
    """Whether a function meets a condition of a rule: one of its patterns (udev(7))."""
    current = {"KERNEL": address, "SUBSYSTEM": "pci", "ACTION": "add"}.get(key)
    if key == "ATTR" and name in ("vendor", "device", "class", "subsystem_vendor", "subsystem_device"):
        current = source.word(f"{DEVICES}/{address}/{name}") or ""
    return current is not None and any(fnmatch.fnmatchcase(current, pattern) for pattern in value.split("|"))


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
