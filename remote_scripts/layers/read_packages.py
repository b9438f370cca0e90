"""Which packages of NVIDIA's stack this program has put on a system, exactly, and which newer ones its repositories
have. Changes nothing, and asks no repository.
"""

from __future__ import annotations

from dataclasses import dataclass

from remote_scripts.shared import driver, driver_installer
from remote_scripts.shared.installed import RECORDS, installed, recorded
from remote_scripts.shared.os_release import distribution
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.run import NOT_FOUND
from remote_scripts.tools.system import System

_BYTES = 1 << 26


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Nothing is to be said."""


@dataclass(frozen=True)
class Answer:
    """`distribution`: such as `ubuntu 24.04`; `driver`: the version of the installed libraries, or empty; `packages`:
    NAME VERSION SHA256 NEWEST of each that was added or changed, `-` for what no repository tells; `installer`: of
    NVIDIA's that this program has run, VERSION SHA256; empty: none, or one that is gone.
    """

    distribution: str
    driver: str
    packages: tuple[str, ...]
    installer: str


def read(system: System, wanted: Wanted) -> Answer:
    """:raises Failure: what is there can't be read."""
    whole = installed(system).whole
    own = {name for layer in system.files.names(RECORDS) for name in recorded(system, layer)}
    names = sorted(name for name in own if name in whole)
    sums, newest = _offered(system, names)
    lines = (f"{name} {whole[name]} {sums.get((name, whole[name]), '-')} {newest.get(name, '-')}" for name in names)
    return Answer(" ".join(distribution(system)), driver.library_version(system), tuple(lines), _installer(system))


def _offered(system: System, names: list[str]) -> tuple[dict[tuple[str, str], str], dict[str, str]]:
    """(name, version) -> SHA-256 of what the repositories have; name -> the newest version, which apt-cache has first.

    :raises Failure: apt doesn't say.
    """
    sums: dict[tuple[str, str], str] = {}
    newest: dict[str, str] = {}
    if not names:
        return sums, newest
    done = system.run.ask("apt-cache", "show", *names, seconds=600, limit=_BYTES)
    # 100: no repository has one of them, the others are told.
    if done.status not in (0, 100, NOT_FOUND):
        raise Failure(
            "what the repositories have of the installed packages",
            done.failure("apt-cache"),
            "versions and sums are written down by it",
            "see what apt says there, mend it, and run the same again",
        )
    for paragraph in done.text.split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in paragraph.split("\n"))
        foreign = f"{fields.get('Package')}:{fields.get('Architecture')}"
        name, version = foreign if foreign in names else fields.get("Package", ""), fields.get("Version", "")
        if "SHA256" in fields:
            sums[name, version] = fields["SHA256"]
            newest.setdefault(name, version)
    return sums, newest


def _installer(system: System) -> str:
    record = driver_installer.noted(system)
    is_known = record and record.version and record.sha256 and record.version == driver.run_version(system)
    return f"{record.version} {record.sha256}" if record and is_known else ""
