"""The lock file: which packages each system has, by version and SHA-256, so that a later run, or another system,
installs the same.

`homelab lock` writes down what is installed; the plan goes by it (`nvidia.plan`): what repositories offer is narrowed
to the locked versions, apt is told to prefer them, also for what they depend on, and the scripts end where apt would
install another version or another file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError

from homelab.errors import HomelabError
from homelab.model import Model
from homelab.nvidia.versions import parse
from homelab.settings.types import DebianVersion, PackageName

HEAD = (
    "# Written by python -m homelab lock: what is installed on each system of this stack. Keep it beside the "
    "stack's file, under version control.\n"
)
# Above what apt's own pins here have, so that a locked version counts before the newest one of a branch.
PRIORITY = 1002


class LockedPackage(Model):
    """A package, exactly."""

    version: DebianVersion
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of its file, as the repository's index has it."""


class LockedInstaller(Model):
    """NVIDIA's installer, exactly."""

    version: Annotated[str, Field(pattern=r"^[0-9]{3}(\.[0-9]{2,3}){1,2}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class SystemLock(Model):
    """What one system has."""

    distribution: Annotated[str, Field(pattern=r"^[a-z]+ [0-9.]+$")]
    """Its distribution and version: `ubuntu 24.04`."""
    driver: Annotated[str, Field(pattern=r"^([0-9.]+)?$")] = ""
    """The driver's version; empty where it has none of this program's."""
    packages: dict[PackageName, LockedPackage] = {}
    """The packages that this program has added or changed."""
    installer: LockedInstaller | None = None
    """NVIDIA's installer, where the driver is of that."""

    @property
    def table(self) -> str:
        """For scripts: a line for each, NAME VERSION SHA256."""
        return "\n".join(f"{name} {one.version} {one.sha256}" for name, one in sorted(self.packages.items()))

    @property
    def pins(self) -> str:
        """For apt's preferences."""
        return "\n".join(
            f"Package: {name}\nPin: version {one.version}\nPin-Priority: {PRIORITY}\n"
            for name, one in sorted(self.packages.items())
        )

    def only(self, offered: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """Of what repositories offer, what may be installed: of a locked package its version alone, where that is
        offered."""
        return {
            name: tuple(one for one in versions if one == self.packages[name].version)
            if name in self.packages
            else versions
            for name, versions in offered.items()
        }


class _File(Model):
    version: Literal[1]
    systems: dict[str, SystemLock]


def path_of(folder: Path, stack: str) -> Path:
    """Where a stack's lock file lies.

    :param stack: its name, perhaps with organization and project.
    """
    return folder / f"homelab.{stack.rpartition('/')[2]}.lock.yaml"


def load(path: Path) -> dict[str, SystemLock]:
    """The locks by system (`vms.sandbox`); none where there is no file.

    :raises HomelabError: it isn't one.
    """
    if not path.exists():
        return {}
    try:
        return _File.model_validate(yaml.safe_load(path.read_text(encoding="utf-8"))).systems
    except (ValidationError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise HomelabError(
            wanted=f"a lock file that `python -m homelab lock` has written, in {path.name}",
            found=str(error).splitlines()[0] + (f" {str(error).splitlines()[-1]}" if "\n" in str(error) else ""),
            why="a package that isn't known exactly can't be held to its version",
            next="undo what was changed in it; or remove the file, and run `python -m homelab lock` again",
        ) from error


def text_of(locks: Mapping[str, SystemLock]) -> str:
    """The file."""
    systems = {
        name: one.model_dump(mode="json", by_alias=True, exclude_none=True) for name, one in sorted(locks.items())
    }
    return HEAD + yaml.safe_dump({"version": 1, "systems": systems}, sort_keys=True, width=120)


def against(
    lock: SystemLock, name: str, distribution: str, driver: str | None, run_sha256: Mapping[str, str] | None = None
) -> list[HomelabError]:
    """Why a lock isn't one of what is wanted now.

    :param driver: the settings' branch or version; None: whichever.
    :param run_sha256: what the settings say of installers, by version.
    """
    wanted, found = "", ""
    installer = lock.installer
    named = (run_sha256 or {}).get(installer.version) if installer else None
    if lock.distribution != distribution:
        wanted, found = f"{distribution}, which {name} has", lock.distribution
    elif driver is not None and lock.driver and not _fits(driver, lock.driver):
        wanted, found = f"NVIDIA's driver {driver}, as the settings have it", lock.driver
    elif installer is not None and named not in (None, installer.sha256):
        wanted, found = (
            f"NVIDIA's installer {installer.version} with the SHA-256 {named}, as nvidia.runSha256 has it",
            installer.sha256,
        )
    if not wanted:
        return []
    return [
        HomelabError(
            wanted=f"{name}: packages of the lock file for {wanted}",
            found=f"the lock file has those for {found}",
            why="the lock file and the settings say different things, and neither may be left out silently",
            next=f"`python -m homelab lock --release {name}`, then `pulumi up` and `python -m homelab lock`; or put "
            "the setting back",
        )
    ]


def _fits(wanted: str, version: str) -> bool:
    numbers = parse(wanted).numbers
    return parse(version).numbers[: len(numbers)] == numbers
