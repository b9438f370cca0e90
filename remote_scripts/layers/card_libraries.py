"""Packages of the distribution by which programs in a container use its Intel and AMD cards: VA-API's drivers, OpenCL,
ROCm's runtime.

Changes packages; /var/lib/homelab/libraries names those that were asked for. With others than the last time, all of
ours go first. `revert` removes exactly what was added; what others need by now stays, and is said.
"""

from __future__ import annotations

from remote_scripts.both.card_libraries import Answer, Wanted
from remote_scripts.shared import os_release
from remote_scripts.shared.packages import Packages, Reverted
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME
from remote_scripts.tools.system import System, changes

_LAYER = "libraries"
_ASKED = f"{HOME}/libraries"


@changes
def apply(system: System, wanted: Wanted) -> Answer:
    """Installs them.

    :raises Failure: the distribution isn't known, or lacks something; or apt can't do it.
    """
    packages = Packages(system, wanted.software, _LAYER, "packages for its cards")
    names = _chosen(packages, wanted)
    before = system.files.need_text(_ASKED).split()
    if not set(before) <= set(names):
        system.log.say("other packages than before are wanted: the former ones are removed")
        packages.remove()
    system.files.note(_ASKED, f"{' '.join(names)}\n".encode())
    packages.install(names)
    packages.note_step()
    return Answer(tuple(names), system.files.changed)


@changes
def revert(system: System, wanted: Wanted) -> Reverted:
    """Removes what was added, unless another name of the container in the settings has it by now.

    :raises Failure: apt can't do it.
    """
    packages = Packages(system, wanted.software, _LAYER, "packages for its cards")
    if packages.is_anothers():
        return Reverted((), False)
    packages.remove()
    system.files.remove(_ASKED)
    return packages.reverted()


def _chosen(packages: Packages, wanted: Wanted) -> list[str]:
    """The packages of this distribution. The lists are fetched where one isn't installed."""
    place = wanted.software.context.name
    distribution = os_release.distribution(packages.system)
    choice = next((choice for choice in wanted.choices if (choice.id, choice.version) == distribution), None)
    if choice is None:
        supported = ", ".join(f"{choice.id} {choice.version}" for choice in wanted.choices)
        raise Failure(
            f"{place}: packages for its cards",
            f"it is {' '.join(filter(None, distribution)) or 'of no known distribution'} (/etc/os-release)",
            f"their names are known of {supported} alone",
            "take libraries out of its settings, and install them inside yourself; the card itself works in any "
            "container",
        )
    if choice.lacking:
        raise Failure(
            f"{place}: packages for its cards",
            choice.lacking,
            "no repository is added for them",
            "leave that use out of libraries, or take a container of another release",
        )
    if not all(any(map(packages.is_whole, word.split("|"))) for word in choice.packages):
        packages.update()
    return [_one_of(packages, word.split("|")) for word in choice.packages]


def _one_of(packages: Packages, names: list[str]) -> str:
    """The installed one, else the first that can be had, else the last: apt says what is wrong with it."""
    installed = [name for name in names if packages.is_whole(name)]
    if installed or len(names) == 1:
        return (installed or names)[0]
    offered = packages.offered(*names)
    for name in names[:-1]:
        if offered[name]:
            return name
        packages.system.log.say(f"note: {name} isn't in its repositories: {names[-1]} in its place")
    return names[-1]
