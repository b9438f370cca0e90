"""Version numbers: of the driver, of CUDA, of kernels and of packages. Compared as numbers, shown as they were
written."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

_DOTTED = re.compile(r"\d+(?:\.\d+)*")


@dataclass(frozen=True, order=True)
class Version:
    """A dotted version such as 580.105.08; 580 comes before all of its branch."""

    numbers: tuple[int, ...]
    text: str = field(compare=False)

    @property
    def is_branch(self) -> bool:
        """Whether it is a driver's branch (580), not one of its versions."""
        return len(self.numbers) == 1

    @property
    def major(self) -> int:
        """The first number: the driver's branch, CUDA's major release."""
        return self.numbers[0]

    @property
    def short(self) -> str:
        """Its first two numbers: 12.8 of CUDA's update 12.8.1."""
        return ".".join(map(str, self.numbers[:2]))

    def __str__(self) -> str:
        return self.text


def parse(text: str) -> Version:
    """A version from its text alone.

    :raises ValueError: it isn't dotted numbers.
    """
    return Version(tuple(int(number) for number in text.split(".")), text)


def fits(version: Version, wanted: Version) -> bool:
    """Is a driver's version the wanted one, or, where a branch is wanted (580), of that branch? (On a system: `fits` in
    remote_scripts/nvidia/driver.py.)
    """
    return version.major == wanted.major if wanted.is_branch else version == wanted


def reaches(driver: Version, least: Version) -> bool:
    """Is a driver a version or a later one? A branch counts as its newest release, whatever that is."""
    return (*driver.numbers, *((math.inf,) if driver.is_branch else ())) >= least.numbers


def of_kernel(release: str) -> Version | None:
    """The version in a kernel's release (`uname -r`): 6.17.13 of 6.17.13-2-pve; None where there is none."""
    match = _DOTTED.match(release)
    return parse(match[0]) if match else None


def flavour_of_kernel(release: str) -> str:
    """What comes after the numbers of a kernel's release: `generic`, `amd64`, `cloud-amd64`, `pve`; empty where nothing
    does."""
    return re.sub(r"^[\d.]+(?:\+\w+)?(?:-\d[\w.~+]*)*-?", "", release)
