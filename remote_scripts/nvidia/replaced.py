"""The driver that an update replaces: noted by names and versions of its packages before anything changes, so that an
update which fails, also one that was cut short before, goes back to it by the same repositories.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from remote_scripts.apt.apt import Apt
from remote_scripts.apt.asked import AskedApt
from remote_scripts.nvidia import driver
from remote_scripts.nvidia.driver import FAMILY
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

    @property
    def word(self) -> str:
        """As apt is asked for it."""
        return f"{self.name}={self.version}"


@dataclass(frozen=True, kw_only=True)
class Replaced:
    """What is noted. `phase`: of version 2.0.0; "tried": the new driver was installed, and waited for its boot."""

    RETIRED: ClassVar = frozenset(("driver", "kernels", "left", "loaded", "worked", "new", "wanted"))
    packages: tuple[Package, ...] = ()
    phase: Literal["", "trying", "back", "tried"] = ""


_NOTE = Note(f"{_FOLDER}/kept", Replaced)


def noted(files: Files) -> tuple[Package, ...]:
    """The packages of the driver that is being replaced; none: no update is under way.

    :raises OSError: the note can't be read.
    """
    note = _NOTE.read(files) or Replaced()
    return note.packages if note.phase != "tried" else ()


def is_open(files: Files) -> bool:
    """Whether an update was cut short, or one that version 2.0.0 has taken back after its boot is to be tried again.

    :raises OSError: the note can't be read.
    """
    return _NOTE.read(files) is not None or files.exists(_GIVEN_UP)


def there(apt: Apt) -> tuple[Package, ...]:
    """The driver's packages that are wholly installed."""
    manual = apt.marked("manual")
    whole = sorted((name, version) for name, version in apt.installed().whole.items() if FAMILY.search(name))
    return tuple(Package(name, version, "manual" if name in manual else "auto") for name, version in whole)


def can_be_had(apt: AskedApt) -> bool:
    """Whether the repositories still have the driver that is there."""
    family = {name: version for name, version in apt.installed().whole.items() if FAMILY.search(name)}
    offered = apt.offered(*family)
    return not driver.run_version(apt.system) and all(version in offered[name] for name, version in family.items())


def note(files: Files, packages: tuple[Package, ...]) -> None:
    """Notes them."""
    _NOTE.write(files, Replaced(packages=packages))


def forget(files: Files) -> None:
    """The update has come to its end. Without the note the rest is litter."""
    files.remove(_NOTE.path, _GIVEN_UP)
    files.remove_tree(_FOLDER)
