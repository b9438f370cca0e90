"""NVIDIA's repositories, each with a key whose fingerprint is known, and looked at by apt; which versions may be
installed, and which not by themselves.

Changes packages, and lists, keyrings and files of apt's configuration; the lists of packages are fetched. `revert`
undoes exactly these; the lists that were fetched go with apt's next update. Where the user has a repository already,
that is used, and no second entry is written: apt refuses two with different keyrings.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from remote_scripts.both.nvidia_repository import Answer, Repository, Wanted
from remote_scripts.shared.apt import THE_SYSTEMS, aside
from remote_scripts.shared.packages import Packages, Reverted
from remote_scripts.tools.system import System, changes

LAYER = "nvidia-repository"
_KEYS = "/run/homelab/keys"


@changes
def read(system: System, wanted: Wanted) -> Answer:
    """What the repositories offer by now, whether or not the system has them; nothing of it is changed.

    :raises Failure: a list can't be had.
    """
    packages = Packages(system, wanted.software, LAYER)
    with looking(packages, wanted):
        return Answer(_offered(packages, wanted), tuple(packages.of_layer()), system.files.changed)


@contextlib.contextmanager
def looking(packages: Packages, wanted: Wanted) -> Iterator[None]:
    """The packages' apt is one aside, which has the repositories and their pins.

    :raises Failure: a list can't be had.
    """
    system, files, sources, there = packages.system, packages.system.files, {}, []
    for repository in wanted.repositories:
        name, key = repository.list_file.rpartition("/")[2], f"{_KEYS}/{repository.keyring.rpartition('/')[2]}"
        packages.download(repository.key_url, key)
        sources[name] = f"{repository.line.strip()}\n".replace(repository.keyring, files.name(key))
        if _other_file(system, repository.url, ""):
            there.append(name)
    pins = {file.path.rpartition("/")[2]: file.content for file in wanted.files if "/preferences.d/" in file.path}
    try:
        with aside(files, sources, pins, there) as packages.aside:
            if sources:
                packages.fetch_aside()
            yield
    finally:
        packages.aside = THE_SYSTEMS
        files.remove_tree(_KEYS)


@changes
def apply(system: System, wanted: Wanted) -> Answer:
    """Adds the repositories, and fetches their lists.

    :raises Failure: a list can't be had, or another key has signed it.
    """
    files, packages = system.files, Packages(system, wanted.software, LAYER)
    own = [repository for repository in wanted.repositories if _is_wanted_here(system, repository)]
    # What an earlier run wrote, and isn't wanted any more, or another file has by now.
    kept = {path for repository in own for path in (repository.list_file, repository.keyring)} | {
        file.path for file in wanted.files
    }
    for path in files.of_layer(LAYER):
        if path not in kept:
            files.drop(LAYER, path)
    if not all(map(packages.is_whole, wanted.prerequisites)):
        packages.update()
        packages.install(wanted.prerequisites)
    for file in wanted.files:
        files.put(LAYER, file.path, 0o644, f"{file.content.removesuffix(chr(10))}\n".encode())
    for repository in own:
        _take_key(packages, repository)
        files.put(LAYER, repository.list_file, 0o644, f"{repository.line.strip()}\n".encode())
    packages.update(*(repository.url for repository in wanted.repositories))
    offered = _offered(packages, wanted)
    packages.note_step()
    files.finish()
    return Answer(offered, tuple(packages.of_layer()), files.changed)


@changes
def revert(system: System, wanted: Wanted) -> Reverted:
    """Takes out what this layer put there.

    :raises Failure: apt can't do it.
    """
    files, packages = system.files, Packages(system, wanted.software, LAYER)
    if packages.is_anothers():
        return Reverted((), False)
    for path in files.of_layer(LAYER):
        files.drop(LAYER, path)
    packages.remove()
    return packages.reverted()


def _offered(packages: Packages, wanted: Wanted) -> dict[str, tuple[str, ...]]:
    return {name: tuple(versions) for name, versions in packages.offered(*wanted.ask).items()}


def _take_key(packages: Packages, repository: Repository) -> None:
    """Fetches it, unless it lies there, and belongs to this very line."""
    files, states = packages.system.files, packages.system.files.of_layer(LAYER)
    is_there = states.get(repository.keyring) == states.get(repository.list_file) == "ok"
    if is_there and files.text(repository.list_file).strip() == repository.line.strip():
        return
    packages.download(repository.key_url, f"{_KEYS}/fetched")
    files.put(LAYER, repository.keyring, 0o644, files.need(f"{_KEYS}/fetched") or b"")
    files.remove_tree(_KEYS)


def _is_wanted_here(system: System, repository: Repository) -> bool:
    """Whether no other file has it."""
    other = _other_file(system, repository.url, repository.list_file)
    if other:
        system.log.say(f"{repository.url} is in {other} already: that entry is used")
    return not other


def _other_file(system: System, url: str, our_list: str) -> str:
    """The file in which a user has an entry for a repository, as apt reads its configuration; empty where there is
    none, or where apt can't read that, which it says when the lists are fetched.
    """
    asked = ("indextargets", "--no-release-info", "--format", "$(REPO_URI) $(SOURCESENTRY)", "Created-By: Packages")
    for line in system.run.ask("apt-get", *asked).text.split("\n"):
        repository, _, entry = line.partition(" ")
        path = entry.rpartition(":")[0]
        if repository.rstrip("/") == url and path != our_list:
            return path
    return ""
