"""Repositories, their keys, and files of apt's configuration: for an apt aside, and as a layer's files."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from remote_scripts.apt.apt import Apt
from remote_scripts.apt.asked import AskedApt
from remote_scripts.both.apt import AptFile, Repository

_KEY = "/run/homelab/key"


def add_aside(apt: AskedApt, repositories: Sequence[Repository], files: Sequence[AptFile] = ()) -> None:
    """Repositories, and pins among the files, for an apt aside; their lists are fetched.

    :raises Failure: one can't be had.
    """
    for file in files:
        if "/preferences.d/" in file.path:
            apt.pin(file.path.rpartition("/")[2], file.content)
    for repository in repositories:
        key = f"{apt.folder}/{repository.keyring.rpartition('/')[2]}"
        apt.fetch(repository.key_url, key)
        line = repository.line.replace(repository.keyring, apt.system.files.name(key))
        is_new = not apt.file_of(repository.url)  # asked so, the system's apt would write its cache
        apt.add_source(repository.list_file.rpartition("/")[2], f"{line.strip()}\n", is_new=is_new)
    apt.refresh()


def put(apt: Apt, repositories: Sequence[Repository], wanted: Sequence[AptFile], others: Collection[str]) -> None:
    """Puts them on the system, for the layer. A repository that another file has by now, and what an earlier run wrote
    and isn't wanted, goes.

    :param others: further files of the layer's.
    :raises Failure: a key can't be had.
    """
    files, layer = apt.system.files, apt.layer
    own = [one for one in repositories if apt.file_of(one.url) in ("", one.list_file)]
    kept = {*others, *(path for one in own for path in (one.list_file, one.keyring)), *(file.path for file in wanted)}
    for path in files.of_layer(layer):
        if path.startswith(("/etc/apt/", "/usr/share/keyrings/")) and path not in kept:
            files.drop(layer, path)
    for file in wanted:
        put_file(apt, file.path, file.content)
    states = files.of_layer(layer)
    for one in own:
        is_whole = states.get(one.keyring) == states.get(one.list_file) == "ok"
        # A key that lies there is of this very line.
        if not is_whole or files.text(one.list_file).strip() != one.line.strip():
            apt.fetch(one.key_url, _KEY)
            files.put(layer, one.keyring, 0o644, files.need(_KEY) or b"")
            files.remove(_KEY)
        put_file(apt, one.list_file, one.line)


def put_file(apt: Apt, path: str, content: str) -> None:
    """A file of the layer's, or none where it is empty."""
    if content:
        apt.system.files.put(apt.layer, path, 0o644, f"{content.rstrip(chr(10))}\n".encode())
    else:
        apt.system.files.drop(apt.layer, path)
