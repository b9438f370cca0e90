"""The lock file: the packages of each system, by version and SHA-256, so that a later run, or another system, installs
the same.

`homelab lock` writes what is installed. The plan (`nvidia.plan`) then offers the locked versions alone, apt prefers
them, also as dependencies, and the layers fail where apt would install another version or another file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError

from homelab.errors import HomelabError
from homelab.model import Model
from homelab.nvidia.versions import fits, parse
from homelab.settings.types import DebianVersion, PackageName

HEAD = (
    "# Written by homelab lock: what is installed on each system of this stack. Keep it beside the "
    "stack's file, under version control.\n"
)
# Above the priority of the plan's pins, so that apt takes a locked version before the newest one of a branch.
PRIORITY = 1002


class LockedPackage(Model):
    """A package's version and file."""

    version: DebianVersion
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """The SHA-256 of its file, from the repository's index."""


class LockedInstaller(Model):
    """The version and file of NVIDIA's installer."""

    version: Annotated[str, Field(pattern=r"^[0-9]{3}(\.[0-9]{2,3}){1,2}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class SystemLock(Model):
    """A system's entry in the lock file."""

    distribution: Annotated[str, Field(pattern=r"^[a-z]+ [0-9.]+$")]
    """Its distribution and version: `ubuntu 24.04`."""
    driver: Annotated[str, Field(pattern=r"^([0-9.]+)?$")] = ""
    """The driver's version; empty where this program has installed none."""
    packages: dict[PackageName, LockedPackage] = {}
    """The packages that this program has added or changed."""
    installer: LockedInstaller | None = None
    """NVIDIA's installer, where the driver is of that."""

    @property
    def table(self) -> str:
        """The packages for layers: lines of NAME VERSION SHA256."""
        return "\n".join(
            f"{name} {package.version} {package.sha256}" for name, package in sorted(self.packages.items())
        )

    @property
    def pins(self) -> str:
        """The packages as pins in apt's preferences."""
        return "\n".join(
            f"Package: {name}\nPin: version {package.version}\nPin-Priority: {PRIORITY}\n"
            for name, package in sorted(self.packages.items())
        )

    def narrowed(self, offered: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """The offered versions that may be installed: for a locked package its version alone, none where that isn't
        offered.

        :param offered: package -> versions.
        """
        return {
            name: tuple(version for version in versions if version == self.packages[name].version)
            if name in self.packages
            else versions
            for name, versions in offered.items()
        }


class _File(Model):
    version: Literal[1]
    systems: dict[str, SystemLock]


def path_of(folder: Path, stack: str) -> Path:
    """The path of a stack's lock file.

    :param stack: its name, perhaps with organization and project.
    """
    return folder / f"homelab.{stack.rpartition('/')[2]}.lock.yaml"


def load(path: Path) -> dict[str, SystemLock]:
    """The locks by system (`vms.sandbox`); empty where the file doesn't exist.

    :raises HomelabError: the file isn't a lock file.
    """
    if not path.exists():
        return {}
    try:
        return _File.model_validate(yaml.safe_load(path.read_text(encoding="utf-8"))).systems
    except (ValidationError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise HomelabError(
            wanted=f"a lock file that `homelab lock` has written, in {path.name}",
            found=str(error).splitlines()[0] + (f" {str(error).splitlines()[-1]}" if "\n" in str(error) else ""),
            why="a package that isn't known exactly can't be held to its version",
            next="undo what was changed in it; or remove the file, and run `homelab lock` again",
        ) from error


def text_of(locks: Mapping[str, SystemLock]) -> str:
    """The lock file's text."""
    systems = {
        name: lock.model_dump(mode="json", by_alias=True, exclude_none=True) for name, lock in sorted(locks.items())
    }
    return HEAD + yaml.safe_dump({"version": 1, "systems": systems}, sort_keys=True, width=120)


def refusals(
    lock: SystemLock, name: str, distribution: str, driver: str | None, run_sha256: Mapping[str, str] | None = None
) -> list[HomelabError]:
    """Why a lock doesn't fit the system's distribution or its settings: at most one error.

    :param lock: the system's entry in the lock file.
    :param name: the system's, in the settings.
    :param distribution: the system's, such as `ubuntu 24.04`.
    :param driver: the settings' branch or version; None: any.
    :param run_sha256: version of an installer -> its SHA-256 in the settings.
    """
    wanted, found = "", ""
    installer = lock.installer
    sha256_of_settings = (run_sha256 or {}).get(installer.version) if installer else None
    if lock.distribution != distribution:
        wanted, found = f"{distribution}, which {name} has", lock.distribution
    elif driver is not None and lock.driver and not fits(parse(lock.driver), parse(driver)):
        wanted, found = f"NVIDIA's driver {driver}, as the settings have it", lock.driver
    elif installer is not None and sha256_of_settings not in (None, installer.sha256):
        wanted, found = (
            f"NVIDIA's installer {installer.version} with the SHA-256 {sha256_of_settings}, as nvidia.runSha256 has it",
            installer.sha256,
        )
    if not wanted:
        return []
    return [
        HomelabError(
            wanted=f"{name}: packages of the lock file for {wanted}",
            found=f"the lock file has those for {found}",
            why="the lock file and the settings contradict each other, and neither may be ignored silently",
            next=f"`homelab lock --release {name}`, then `pulumi up` and `homelab lock`; or put the setting back",
        )
    ]
