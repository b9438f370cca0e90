"""How far a long command is, for a person: by what it says and by the files that it makes."""

from __future__ import annotations

import re

from remote_scripts.tools.run import Progress
from remote_scripts.tools.system import System

_BYTES = 1 << 20
_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}
_NEEDED = re.compile(rb"^Need to get ([\d,.]+) ([kMG]?B)", re.MULTILINE)
_TOLD = re.compile(rb"^(dlstatus|pmstatus):[^:\n]*:([\d.]+)(?::(?:.*\((.+) remaining\))?)?", re.MULTILINE)
_COMPILED = re.compile(r"^[ \t]*CC ", re.MULTILINE)


def of_packages(system: System) -> Progress:
    """Of apt and dpkg, by what they say of themselves (APT::Status-Fd: dlstatus:N:PERCENT:TEXT while it fetches,
    pmstatus:PACKAGE:PERCENT:TEXT while it installs), and of the modules that DKMS builds meanwhile.
    """

    def where(output: bytes, seconds: float) -> str:
        statuses = [*_TOLD.finditer(output)]
        if statuses and statuses[-1][1] == b"dlstatus":
            left = (statuses[-1][3] or b"").decode("utf-8", "replace")
            return _of_download(output, float(statuses[-1][2])) + (f", {_shortened(left)} left" if left else "")
        return of_build(system) or (f"installing, {float(statuses[-1][2]):.0f} %" if statuses else "")

    return where


def of_download(system: System, path: str) -> Progress:
    """Of a file that a program is writing."""

    def where(output: bytes, seconds: float) -> str:
        megabytes = system.files.size(path) // 1_000_000 if not system.is_container else -1
        return f"{megabytes} MB are there" if megabytes >= 0 else ""

    return where


def of_build(system: System) -> str:
    """`building the module for 6.17.2: 40 %`, by the C files that there are and those that were compiled; empty where
    none is built.
    """
    folder = "/var/lib/dkms"
    if system.is_container:  # it has no modules of its own
        return ""
    for name in system.files.names(folder):
        for version in system.files.names(f"{folder}/{name}") if name.startswith("nvidia") else ():
            build = f"{folder}/{name}/{version}/build"
            content = system.files.read(f"{build}/make.log", _BYTES)
            if content is None:
                continue
            text = content.decode("utf-8", "replace")
            kernel = re.search(r" for kernel (\S+)", "\n".join(text.split("\n")[:3]))
            doing = f"building the module{f' for {kernel[1]}' if kernel else ''}"
            compiled = len(_COMPILED.findall(text))
            sources = sum(1 for _ in system.files.at(build).rglob("*.c"))
            return f"{doing}: {100 * compiled // sources} %" if sources and compiled <= sources else doing
    return ""


def _of_download(output: bytes, percent: float) -> str:
    """`1.9 of 4.1 GB`, by what apt-get says that it needs."""
    needed = [float(number.replace(b",", b"")) * _UNITS[unit.decode()] for number, unit in _NEEDED.findall(output)]
    size = needed[-1] if needed else 0
    if size >= 10**9:
        return f"{size * percent / 1e11:.1f} of {size / 1e9:.1f} GB"
    return f"{size * percent / 1e8:.0f} of {size / 1e6:.0f} MB" if size >= 10**6 else f"{int(percent)} %"


def _shortened(time: str) -> str:
    """apt's `1h 2min 3s` without what a reader doesn't need."""
    for unit, shown in (("h", "h"), ("min", "min"), ("s", "s")):
        number, separator, _ = time.partition(unit)
        if separator:
            return f"{number} {shown}"
    return time
