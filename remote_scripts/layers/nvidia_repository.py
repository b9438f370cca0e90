"""NVIDIA's repositories, each with a key whose fingerprint is known; which versions may be installed, and which not by
themselves.

Changes packages, and lists, keyrings and files of apt's configuration; the lists of packages are fetched. `revert`
undoes exactly these; the lists that were fetched go with apt's next update. Where the user has a repository already,
that is used, and no second entry is written: apt refuses two with different keyrings.
"""

from __future__ import annotations

from remote_scripts.both.nvidia_repository import Answer, Repository, Wanted
from remote_scripts.shared import repositories
from remote_scripts.shared.packages import Packages, Reverted
from remote_scripts.tools.system import System, changes

LAYER = "nvidia-repository"


@changes
def apply(system: System, wanted: Wanted) -> Answer:
    """Adds the repositories, and fetches their lists.

    :raises Failure: a key is another one, or a list can't be had.
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
        repositories.take_key(packages, repository.key_url, repository.fingerprint, repository.keyring)
        files.put(LAYER, repository.list_file, 0o644, f"{repository.line.strip()}\n".encode())
    packages.update(*(repository.url for repository in wanted.repositories))
    packages.note_step()
    files.finish()
    offered = packages.offered(*wanted.ask)
    added = tuple(packages.of_layer())
    return Answer({name: tuple(offered[name]) for name in wanted.ask}, added, files.changed)


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


def _is_wanted_here(system: System, repository: Repository) -> bool:
    """Whether no other file has it."""
    other = repositories.other_file(system, repository.url, repository.list_file)
    if other:
        system.log.say(f"{repository.url} is in {other} already: that entry is used")
    return not other
