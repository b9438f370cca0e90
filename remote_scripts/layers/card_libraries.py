"""Packages of the distribution by which programs in a container use its Intel and AMD cards: VA-API's drivers, OpenCL,
ROCm's runtime.

Changes packages; what came for another use goes. `revert` removes exactly what was added; what others need by now
stays, and is said.
"""

from __future__ import annotations

from remote_scripts.apt import os_release
from remote_scripts.apt.apt import Apt
from remote_scripts.apt.packages import LIBRARIES, Reverted
from remote_scripts.both.card_libraries import Answer, Wanted
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System, changes


@changes
def apply(system: System, wanted: Wanted) -> Answer:
    """Installs them.

    :raises Failure: the distribution isn't known, or lacks something; or apt can't do it.
    """
    apt = Apt(system, wanted.software, LIBRARIES, "packages for its cards")
    names = _chosen(apt, wanted)
    apt.install(names)
    apt.tidy(names)
    apt.note_step()
    return Answer(tuple(names), system.files.changed)


@changes
def revert(system: System, wanted: Wanted) -> Reverted:
    """Removes what was added, unless another name of the container in the settings has it by now.

    :raises Failure: apt can't do it.
    """
    apt = Apt(system, wanted.software, LIBRARIES, "packages for its cards")
    if apt.is_anothers():
        return Reverted((), False)
    apt.repair()
    return apt.reverted(apt.tidy())


def _chosen(apt: Apt, wanted: Wanted) -> list[str]:
    """The packages of this distribution. The lists are fetched where one isn't installed."""
    place = wanted.software.context.name
    distribution = os_release.distribution(apt.system)
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
    if not all(any(map(apt.is_whole, word.split("|"))) for word in choice.packages):
        apt.update()
    return [_one_of(apt, word.split("|")) for word in choice.packages]


def _one_of(apt: Apt, names: list[str]) -> str:
    """The installed one, else the first that can be had, else the last: apt says what is wrong with it."""
    installed = [name for name in names if apt.is_whole(name)]
    if installed or len(names) == 1:
        return (installed or names)[0]
    offered = apt.offered(*names)
    for name in names[:-1]:
        if offered[name]:
            return name
        apt.system.log.say(f"note: {name} isn't in its repositories: {names[-1]} in its place")
    return names[-1]
