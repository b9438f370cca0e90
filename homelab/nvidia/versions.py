"""Version numbers: of the driver, of CUDA, of kernels and of packages. Compared as numbers, shown as they were
written."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_DOTTED = re.compile(r"\d+(?:\.\d+)*")
# [epoch:]upstream[-revision], as dpkg has it
_PACKAGE = re.compile(r"(?:\d+:)?(\d+(?:\.\d+)*)(?:[-~+].*)?")


@dataclass(frozen=True, order=True)
class Version:
    """A dotted version such as 580.105.08; 580 comes before all of its branch."""

    numbers: tuple[int, ...]
    text: str = field(compare=False)

    @property
    def major(self) -> int:
        """The first number: the driver's branch, CUDA's major release."""
        return self.numbers[0]

    def __str__(self) -> str:
        return self.text


def parse(text: str) -> Version:
    """A version from its text alone.

    :raises ValueError: it isn't dotted numbers.
    """
    if not _DOTTED.fullmatch(text):
        raise ValueError(f"expected dotted numbers such as 580.105.08, found {text!r}")
    return Version(tuple(int(number) for number in text.split(".")), text)


def fits(version: Version | None, wanted: Version) -> bool:
    """Is a driver's version the wanted one, or, where a branch is wanted (580), of that branch? None, no version, fits
    nothing. (On a system: `fits` in remote_scripts/shared/driver.py.)
    """
    if version is None:
        return False
    return version == wanted if len(wanted.numbers) > 1 else version.major == wanted.major


def of_kernel(release: str) -> Version | None:
    """The version in a kernel's release (`uname -r`): 6.17.13 of 6.17.13-2-pve; None where there is none."""
    match = _DOTTED.match(release)
    return parse(match[0]) if match else None


def flavour_of_kernel(release: str) -> str:
    """What comes after the numbers of a kernel's release: `generic`, `amd64`, `cloud-amd64`, `pve`; empty where nothing
    does."""
    return re.sub(r"^[\d.]+(?:\+\w+)?(?:-\d[\w.~+]*)*-?", "", release)


def of_package(text: str) -> Version | None:
    """The upstream version in a package's: 580.105.08 of 580.105.08-1ubuntu1; None where it isn't dotted numbers."""
    match = _PACKAGE.fullmatch(text)
    return parse(match[1]) if match else None


@dataclass(frozen=True)
class Range:
    """From a version (included) to another (not included); an end that is None is open."""

    start: Version | None = None
    end: Version | None = None

    def __contains__(self, version: Version) -> bool:
        return (self.start is None or version >= self.start) and (self.end is None or version < self.end)

    def __str__(self) -> str:
        start, end = f"from {self.start}" if self.start else "", f"before {self.end}" if self.end else ""
        return " ".join(part for part in (start, end) if part)
