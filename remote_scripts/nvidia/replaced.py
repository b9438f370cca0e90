"""The driver that an update replaces: noted by names and versions of its packages before anything changes, so that an
update which fails, also one that was cut short before, goes back to it by the same repositories.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from remote_scripts.apt.apt import Apt
from remote_scripts.apt.asked import AskedApt
from remote_scripts.nvidia import driver
from remote_scripts.nvidia.driver import FAMILY
from remote_scripts.nvidia.nvidia import Module
from remote_scripts.tools import kernel
from remote_scripts.tools.files import HOME, Files
from remote_scripts.tools.notes import Note

# Version 2.0.0 kept the packages' files there, too.
_FOLDER = f"{HOME}/update"
# And there the version that it had given up after a boot.
_GIVEN_UP = f"{HOME}/given-up"


@dataclass(frozen=True)
class Package:
    """A package of the driver's. `mark`: auto or manual."""

    name: str
    version: str
    mark: Literal["auto", "manual"]


@dataclass(frozen=True, kw_only=True)
class Replaced:
    """What is noted. `driver`: its module; `phase`: of version 2.0.0; "tried": the new driver was installed, and waited
    for its boot.
    """

    driver: Module = Module()
    packages: tuple[Package, ...] = ()
    phase: Literal["", "trying", "back", "tried"] = ""


_NOTE = Note(f"{_FOLDER}/kept", Replaced)


def noted(files: Files) -> Replaced | None:
    """The driver that is being replaced; None: no update is under way.

    :raises OSError: the note can't be read.
    """
    note = _NOTE.read(files)
    return note if note and note.phase != "tried" else None


def is_open(files: Files) -> bool:
    """Whether an update was cut short, or one that version 2.0.0 has taken back after its boot is to be tried again.

    :raises OSError: the note can't be read.
    """
    return _NOTE.read(files) is not None or files.exists(_GIVEN_UP)


def _family(apt: AskedApt) -> dict[str, str]:
    return {name: version for name, version in sorted(apt.installed().whole.items()) if FAMILY.search(name)}


def can_be_had(apt: AskedApt) -> bool:
    """Whether the repositories still have the driver that is there."""
    family = _family(apt)
    offered = apt.offered(*family)
    return not driver.run_version(apt.system) and all(version in offered[name] for name, version in family.items())


def note(apt: Apt) -> None:
    """Notes the driver that is there, unless one is noted already: then what is there is half of an update."""
    if noted(apt.system.files):
        return
    manual = apt.marked("manual")
    packages = tuple(
        Package(name, version, "manual" if name in manual else "auto") for name, version in _family(apt).items()
    )
    module = driver.module(apt.system, kernel.running(apt.system))
    _NOTE.write(apt.system.files, Replaced(driver=module, packages=packages))


def forget(files: Files) -> None:
    """The update has come to its end. Without the note the rest is litter."""
    files.remove(_NOTE.path, _GIVEN_UP)
    files.remove_tree(_FOLDER)
