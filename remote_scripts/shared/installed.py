"""Which packages are installed, which ones this program has recorded, and what the repositories have. Asks no
repository. One of another architecture than the system's own is called as apt calls it, NAME:ARCHITECTURE.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from remote_scripts.shared.apt import THE_SYSTEMS, Aside
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME
from remote_scripts.tools.run import NOT_FOUND, Done
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
    form = "-f=${Package}\\t${db:Status-Status}\\t${Version}\\t${Architecture}\\n"
    done = system.run.ask("dpkg-query", "-W", form, seconds=_ASK_SECONDS, limit=_BYTES)
    if done.status != NOT_FOUND:
        need_answer(done, "which packages are installed", "dpkg-query")
    packages = Installed()
    lines = [(*line.split("\t"), "", "", "")[:4] for line in done.text.split("\n")]
    own = next((architecture for name, *_, architecture in lines if name == "dpkg"), "")
    for bare, state, version, architecture in lines:
        name = f"{bare}:{architecture}" if own and architecture not in (own, "all", "") else bare
        if state == "config-files":
            packages.left.add(name)
        elif state and state != "not-installed":
            packages.present[name] = version
            if state == "installed":
                packages.whole[name] = version
    return packages


def offered(system: System, *names: str, aside: Aside = THE_SYSTEMS) -> dict[str, list[str]]:
    """The versions of each package that the repositories have, the newest first.

    :param aside: the apt that is asked; by default the system's.
    :raises Failure: apt doesn't say.
    """
    versions: dict[str, list[str]] = {name: [] for name in names}
    if not names or not system.run.has("apt-cache"):
        return versions
    done = system.run.ask(
        *("apt-cache", *aside.options, "madison", *names),
        seconds=_ASK_SECONDS,
        limit=_BYTES,
        environment=aside.environment,
    )
    if not re.search(rb"No packages found|Unable to locate package", done.error):
        need_answer(done, "which versions of packages the repositories have", "apt-cache")
    for line in done.text.split("\n"):
        name, _, rest = (part.strip() for part in line.partition("|"))
        version, _, origin = (part.strip() for part in rest.partition("|"))
        if name and origin.endswith("Packages") and version not in versions.setdefault(name, []):
            versions[name].append(version)
    return versions


def need_answer(done: Done, wanted: str, program: str) -> None:
    """:raises Failure: a program that says what there is has failed."""
    if done.status != 0:
        raise Failure(
            wanted,
            done.failure(program),
            "what is there decides what is installed and what is kept; nothing more was changed",
            f"see what {program} says there, mend it, and run the same again",
        )


def recorded(system: System, layer: str) -> dict[str, Record]:
    """What a layer has recorded, by the packages' names.

    :raises OSError: it can't be read.
    """
    text = system.files.need_text(f"{RECORDS}/{layer}", _BYTES)
    lines = (line.split("\t") for line in text.split("\n") if line)
    # A version may be empty; a line that was cut short is none.
    return {words[0]: Record(*words[1:]) for words in lines if len(words) == 4}
