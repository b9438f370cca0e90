"""NVIDIA's driver on a host, and its device nodes. The kernel makes none of them but those in /dev/dri; who needs one
makes it. That isn't left to nvidia-modprobe: not every driver brings it (it is a package of its own on Debian), so that
this would be needed beside it. Majors come from /proc/devices (uvm's and caps' change with kernels), minors of cards
from /proc/driver/nvidia/gpus. What is there and can't be read raises an OSError: it isn't taken for no driver, or no
card.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from remote_scripts.containers.card_nodes import UVM
from remote_scripts.tools import kernel
from remote_scripts.tools.device import Device
from remote_scripts.tools.system import System

PROC = "/proc/driver/nvidia"
GPUS = f"{PROC}/gpus"
DAEMON = "nvidia-persistenced.service"
#: In the order in which they can be unloaded.
MODULES = ("nvidia_uvm", "nvidia_drm", "nvidia_modeset", "nvidia")
_VERSION = re.compile(r"[0-9]{3,}\.[0-9]+(?:\.[0-9]+)?")
_OTHER_NAME = re.compile(r"^\s*install\s+nvidia\s(?:.*[\s/])?modprobe\s+(?:-i|--ignore-install)\s+(\S+)", re.MULTILINE)
# NVIDIA's own (Documentation/admin-guide/devices.txt); only its name in /proc/devices has changed.
_MAJOR = 195
# No file that is read here is longer, in bytes.
_MOST = 1 << 23


@dataclass(frozen=True)
class Module:
    """NVIDIA's module: its version and flavour; empty where there is none."""

    version: str = ""
    flavour: Literal["open", "proprietary", ""] = ""


@dataclass(frozen=True)
class Trouble:
    """Why there is no driver, in the words of a message. `has_module`: whether the kernel has its module."""

    found: str
    next: str
    has_module: bool = True


def loaded(system: System) -> Module:
    """The module that is loaded."""
    if not system.files.exists(f"{PROC}/version"):
        return Module()
    text = _read(system, f"{PROC}/version")
    match = _VERSION.search(text)
    return Module(match[0] if match else "", "open" if "Open Kernel Module" in text else "proprietary")


def major_of(system: System, driver: str) -> int | None:
    """A character device's major number; None while its module isn't loaded."""
    characters = _read(system, "/proc/devices").partition("Block devices:")[0]
    match = re.search(rf"^ *([0-9]+) {driver}$", characters, re.MULTILINE)
    return int(match[1]) if match else None


def minor_of(system: System, address: str) -> int | None:
    """The number of a card's /dev/nvidiaN; None: the driver has no such card.

    :param address: the card's on the PCI bus.
    """
    return _number(_read(system, f"{GPUS}/{address}/information"), "Device Minor")


def minors(system: System) -> dict[str, int]:
    """These numbers of all cards that the driver has, by address."""
    return {address: minor for address in system.files.names(GPUS) if (minor := minor_of(system, address)) is not None}


def trouble(system: System) -> Trouble | None:
    """Why there is no driver that serves cards; None: there is one."""
    if system.files.exists(f"{PROC}/version"):
        return None
    if not any(system.run.ask("modinfo", "-n", name).status == 0 for name in module_names(system)):
        release = kernel.running(system)
        return Trouble(
            f"the kernel {release} has no module nvidia: the driver isn't installed, or wasn't built for this kernel",
            "install NVIDIA's driver on the host; if it is there (`dkms status`), build it for this kernel: "
            "`dkms autoinstall`",
            has_module=False,
        )
    return Trouble(
        "the driver is installed and not loaded",
        "`grep -r nvidia /etc/modprobe.d /usr/lib/modprobe.d` and /proc/cmdline say whether it is blacklisted; when it "
        "may be loaded: `modprobe nvidia`, and read `dmesg | grep NVRM`",
    )


def module_names(system: System) -> list[str]:
    """The possible names of the module's file: the one that modprobe is told (Debian's packages have nvidia-current,
    which other programs don't find by the module's own name), then its own.
    """
    paths = kernel.modprobe_files(system.files.names)
    # A link that leads nowhere is none of its configuration.
    text = "\n".join(_read(system, path) for path in paths if system.files.is_file(path))
    match = _OTHER_NAME.search(text)
    return [match[1], "nvidia"] if match else ["nvidia"]


def served(system: System) -> dict[str, Device]:
    """The nodes that the loaded modules serve, by path."""
    if not system.files.exists(f"{PROC}/version"):
        return {}
    # The host's owner may have closed them to others (NVreg_DeviceFileMode).
    own_mode = _number(_read(system, f"{PROC}/params"), "DeviceFileMode")
    mode_of_all = 0o666 if own_mode is None else own_mode
    nodes = {"/dev/nvidiactl": Device(_MAJOR, 255, mode_of_all)}
    nodes |= {f"/dev/nvidia{minor}": Device(_MAJOR, minor, mode_of_all) for minor in minors(system).values()}
    if major_of(system, "nvidia-modeset") is not None:
        nodes["/dev/nvidia-modeset"] = Device(_MAJOR, 254, mode_of_all)
    if (uvm := major_of(system, "nvidia-uvm")) is not None:
        nodes |= {UVM: Device(uvm, 0, mode_of_all), f"{UVM}-tools": Device(uvm, 1, mode_of_all)}
    if (caps := major_of(system, "nvidia-caps")) is not None:
        folder = f"{PROC}/capabilities/mig"
        for name in system.files.names(folder):
            text = _read(system, f"{folder}/{name}")
            minor, mode = _number(text, "DeviceFileMinor"), _number(text, "DeviceFileMode")
            if minor is not None and mode is not None:
                nodes[f"/dev/nvidia-caps/nvidia-cap{minor}"] = Device(caps, minor, mode)
    return nodes


def missing_nodes(system: System) -> list[str]:
    """Of the nodes that the modules serve those that aren't there, or have other numbers; and nvidia-uvm's, where the
    driver is loaded without that module.
    """
    nodes = served(system)
    missing = [path for path, node in nodes.items() if not _has(system, path, node)]
    return missing if not nodes or UVM in nodes else [*missing, UVM]


def make_nodes(system: System) -> str:
    """Makes the nodes that are missing, or have numbers of an earlier boot. Without nvidia-uvm there is no CUDA; nvidia
    comes with it.

    :returns: what keeps nvidia-uvm from being loaded; empty where it is.
    :raises OSError: one can't be made.
    """
    message = ""
    done = system.run.do("modprobe", "nvidia-uvm", seconds=60)
    if done.status != 0:
        system.log.say(lacks := "nvidia-uvm could not be loaded")
        message = f"{lacks}: {done.said_text.strip() or f'modprobe ended with {done.status}'}"
    for path, node in served(system).items():
        if not _has(system, path, node):
            system.files.make_device(path, node)
            system.log.say(f"made {path} ({node.numbers})")
    return message


def _has(system: System, path: str, node: Device) -> bool:
    device = system.files.device(path)
    return device is not None and device.numbers == node.numbers


def _number(text: str, key: str) -> int | None:
    match = re.search(rf"^{key}:\s*([0-9]+)", text, re.MULTILINE)
    return int(match[1]) if match else None


def _read(system: System, path: str) -> str:
    return system.files.need_text(path, _MOST)
