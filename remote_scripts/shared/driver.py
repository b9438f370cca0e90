"""NVIDIA's driver as it is installed and loaded: flavour, modules, libraries, kernels.

/var/lib/homelab/nvidia-driver is what the step for the driver has left: version, source (packages, run or found:
somebody else's), target, flavour, tabs between.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from remote_scripts.tools.files import HOME
from remote_scripts.tools.system import System

Flavour = Literal["open", "proprietary"]
_NOTE = f"{HOME}/nvidia-driver"
NVIDIA_SMI = "/usr/bin/nvidia-smi"
_UPDATE = f"{HOME}/update"
_UNINSTALL = "/usr/bin/nvidia-uninstall"
_LIBRARIES = "/usr/lib/x86_64-linux-gnu"
_DEVICES = "/sys/bus/pci/devices"
_LIBRARY = re.compile(r"\.so\.([0-9]{3}\.[0-9.]+)$")

Source = Literal["packages", "run", "found"]


@dataclass(frozen=True)
class Module:
    """NVIDIA's module: its version and flavour; empty where there is none."""

    version: str = ""
    flavour: Flavour | Literal[""] = ""


@dataclass(frozen=True)
class Note:
    """What the step for the driver has left; empty where there is no note."""

    version: str = ""
    source: str = ""
    target: str = ""
    flavour: str = ""


def kernels(system: System) -> list[str]:
    """The kernels of a host that must have the module, the oldest first: each that can be booted, as any of them may be
    the next one.
    """
    if system.files.exists("/run/systemd/container"):  # it shares another one's
        return []
    names = [name.removeprefix("vmlinuz-") for name in system.files.names("/boot") if name.startswith("vmlinuz-")]
    return sorted(names, key=_by_version)


def module(system: System, kernel: str) -> Module:
    """The module that a kernel would load."""
    about = dict(
        (key, value.strip())
        for key, _, value in (
            line.partition(":") for line in system.run.ask("modinfo", "-k", kernel, "nvidia").text.split("\n")
        )
    )
    licence = about.get("license", "")
    return Module(about.get("version", ""), "proprietary" if licence == "NVIDIA" else "open" if licence else "")


def library(system: System, soname: str) -> str:
    """The file of the driver's that a library's name leads to; empty where the driver has none."""
    folders = [_LIBRARIES, *(f"{_LIBRARIES}/nvidia/{name}" for name in system.files.names(f"{_LIBRARIES}/nvidia"))]
    for folder in folders:
        path = system.files.resolved(f"{folder}/{soname}")
        if path and _LIBRARY.search(path):
            return path
    return ""


def library_version(system: System) -> str:
    """The version of the libraries that nvidia-smi and CUDA programs load; empty: none."""
    found = _LIBRARY.search(library(system, "libnvidia-ml.so.1"))
    return found[1] if found else ""


def run_version(system: System) -> str:
    """The version that NVIDIA's installer has installed; empty: none."""
    return library_version(system) if system.files.is_file(_UNINSTALL) else ""


def held_by_others(system: System) -> dict[str, str]:
    """NVIDIA's graphics cards that another driver of the kernel's has: address -> nouveau, or its successor."""
    held: dict[str, str] = {}
    for address in system.files.names(_DEVICES):
        folder = f"{_DEVICES}/{address}"
        if not system.files.line(f"{folder}/class").startswith("0x03"):
            continue
        if system.files.line(f"{folder}/vendor") != "0x10de":
            continue
        driver = system.files.resolved(f"{folder}/driver").rpartition("/")[2]
        if driver == "nouveau" or driver.startswith("nova"):
            held[address] = driver
    return held


def note(system: System) -> Note:
    """What the step for the driver has left.

    :raises OSError: its note can't be read.
    """
    line = (system.files.need(_NOTE) or b"").decode("utf-8", "replace").partition("\n")[0]
    return Note(*line.split("\t")[:4])


def update_phase(system: System) -> str:
    """How far an update of the driver is (shared/driver_update.py); empty where there is none.

    :raises OSError: that can't be read.
    """
    return (system.files.need(f"{_UPDATE}/phase") or b"").decode("utf-8", "replace").strip()


def fits(version: str, driver: str) -> bool:
    """Whether a version is the wanted one, or of the wanted branch.

    :param driver: such as 580.105.08, or 580.
    """
    return bool(version) and (version == driver or ("." not in driver and version.startswith(f"{driver}.")))


def is_source_wanted(note: Note, source: str) -> bool:
    """Whether what is there may go on: one that we installed from packages doesn't go on as an installer's, or the
    other way round, if that is what is wanted now.

    :param source: packages, run or either.
    """
    return (note.source, source) not in (("packages", "run"), ("run", "packages"))


def _by_version(name: str) -> list[tuple[int, str | int]]:
    """As `sort -V` has them."""
    return [(1, int(part)) if part.isdigit() else (0, part) for part in re.split(r"([0-9]+)", name)]
