"""What dpkg and apt say of packages, as texts and as what a layer has recorded of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from remote_scripts.tools.done import NOT_FOUND, Done
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME
from remote_scripts.tools.system import System

#: A file for each layer.
RECORDS = f"{HOME}/packages"
#: The layer that brings packages for cards of other makers.
LIBRARIES = "libraries"
#: For so long a question is waited for, in seconds, and so much is read of its answer.
ASK_SECONDS = 600.0
ANSWER_BYTES = 1 << 24


@dataclass
class Installed:
    """`present`: name -> version of what is there, configured or not; `whole`: of what is wholly installed; `left`:
    removed, with its configuration left.
    """

    present: dict[str, str] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Record:
    """A package: its version now and before; `-` where it isn't there. `mark`: auto, if a run has left it so."""

    now: str
    before: str
    mark: str = "manual"


@dataclass(frozen=True)
class Plan:
    """What apt would do. `changes`: packages, by then and now; `why`: its own words where it can't."""

    changes: Mapping[str, Record] = field(default_factory=dict)
    why: str = ""

    @property
    def coming(self) -> dict[str, str]:
        """Packages that would come or change, and the versions by then."""
        return {name: change.now for name, change in self.changes.items() if change.now != "-"}

    @property
    def going(self) -> list[str]:
        """Packages that would go."""
        return [name for name, change in self.changes.items() if change.now == "-"]


@dataclass(frozen=True)
class Reverted:
    """The answer of every such layer's `revert`. `kept`: packages that others need by now."""

    kept: tuple[str, ...]
    changed: bool


def installed(system: System) -> Installed:
    """All packages.

    :raises Failure: dpkg doesn't say.
    """
    form = "-f=${Package}\\t${db:Status-Status}\\t${Version}\\t${Architecture}\\n"
    done = system.run.ask("dpkg-query", "-W", form, seconds=ASK_SECONDS, limit=ANSWER_BYTES)
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
    text = system.files.need_text(f"{RECORDS}/{layer}", ANSWER_BYTES)
    lines = (line.split("\t") for line in text.split("\n") if line)
    # A version may be empty; a line that was cut short is none.
    return {words[0]: Record(*words[1:]) for words in lines if len(words) in (3, 4)}


def announced(text: str) -> dict[str, Record]:
    """What a simulation says of packages that would come, change or go: how they would be, and how they are."""
    changes = {}
    for words in (line.split(" ") for line in text.split("\n")):
        if words[0] == "Inst" and len(words) > 2:
            has_old = words[2].startswith("[")
            new = words[3] if has_old and len(words) > 3 else words[2]
            changes[words[1]] = Record(new[1:], words[2][1:-1] if has_old else "-")
        elif words[0] in ("Remv", "Purg") and len(words) > 2:
            changes[words[1]] = Record("-", words[2].strip("[]"))
    return changes
