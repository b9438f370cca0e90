"""Which packages are installed, which ones this program has recorded, and what the repositories have. Asks no
repository.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME
from remote_scripts.tools.run import NOT_FOUND
from remote_scripts.tools.system import System

#: A file for each layer, with a line for each package that it added, changed or removed.
RECORDS = f"{HOME}/packages"
_ASK_SECONDS = 600.0
_BYTES = 1 << 24


@dataclass
class Installed:
    """`present`: name -> version of what is there, configured or not; `whole`: of what is wholly installed; `left`:
    removed, with its configuration left.
    """

    present: dict[str, str] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)


@dataclass
class Record:
    """A package: its version now and before, and its mark before (auto or manual); `-` where it isn't there."""

    now: str
    before: str
    mark: str


def installed(system: System) -> Installed:
    """All packages.

    :raises Failure: dpkg doesn't say.
    """
    form = "-f=${Package}\\t${db:Status-Status}\\t${Version}\\n"
    done = system.run.ask("dpkg-query", "-W", form, seconds=_ASK_SECONDS, limit=_BYTES)
    if done.status not in (0, NOT_FOUND):
        raise Failure(
            "which packages are installed",
            done.error.decode("utf-8", "replace").strip() or f"exit status {done.status} of dpkg-query",
            "what is there decides what is installed and what is kept; nothing more was changed",
            "see what dpkg says there, mend it, and run the same again",
        )
    found = Installed()
    for line in done.text.split("\n"):
        name, _, rest = line.partition("\t")
        state, _, version = rest.partition("\t")
        if state == "config-files":
            found.left.add(name)
        elif state and state != "not-installed":
            found.present[name] = version
            if state == "installed":
                found.whole[name] = version
    return found


def offered(system: System, *names: str) -> dict[str, list[str]]:
    """The versions of each package that the repositories have, the newest first."""
    versions: dict[str, list[str]] = {name: [] for name in names}
    if not names or not system.run.has("apt-cache"):
        return versions
    done = system.run.ask("apt-cache", "madison", *names, seconds=_ASK_SECONDS, limit=_BYTES)
    for line in done.text.split("\n"):
        name, _, rest = (part.strip() for part in line.partition("|"))
        version, _, origin = (part.strip() for part in rest.partition("|"))
        if name and origin.endswith("Packages") and version not in versions.setdefault(name, []):
            versions[name].append(version)
    return versions


def recorded(system: System, layer: str) -> dict[str, Record]:
    """What a layer has recorded, by the packages' names.

    :raises OSError: it can't be read.
    """
    text = (system.files.need(f"{RECORDS}/{layer}", _BYTES) or b"").decode("utf-8", "surrogateescape")
    lines = (line.split("\t") for line in text.split("\n") if line)
    # A version may be empty; a line that was cut short is none.
    return {words[0]: Record(*words[1:]) for words in lines if len(words) == 4}
