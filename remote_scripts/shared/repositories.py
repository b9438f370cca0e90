"""apt's repositories: who has an entry for one, and keys with a known fingerprint."""

from __future__ import annotations

from remote_scripts.shared.packages import Packages
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

_KEY = "/run/homelab/key"
_KEY_BYTES = 1 << 20
# Without a home of its own, which it would make files in.
_GPG = ("gpg", "--homedir", "/nonexistent", "--batch", "--quiet", "--no-tty", "--no-options")


def other_file(system: System, url: str, our_list: str) -> str:
    """The file in which a user has an entry for a repository, as apt reads its configuration; empty where there is
    none, or where apt can't read that, which it says when the lists are fetched.
    """
    form = "$(REPO_URI) $(SOURCESENTRY)"
    asked = ("indextargets", "--no-release-info", "--format", form, "Created-By: Packages")
    for line in system.run.ask("apt-get", *asked).text.split("\n"):
        repository, _, entry = line.partition(" ")
        path = entry.rpartition(":")[0]
        if repository.rstrip("/") == url and path != our_list:
            return path
    return ""


def take_key(packages: Packages, url: str, fingerprint: str, keyring: str) -> None:
    """A repository's key: fetched, looked at, and put in place only if it is that key and no other.

    :raises Failure: it can't be had, or is another one.
    """
    system, files = packages.system, packages.system.files
    is_ours = files.of_layer(packages.layer).get(keyring) == "ok"
    if is_ours and _fingerprints(system, files.need(keyring, _KEY_BYTES) or b"") == [fingerprint]:
        return
    files.remove(_KEY, f"{_KEY}.part")
    packages.download(url, _KEY)
    key = files.need(_KEY, _KEY_BYTES) or b""
    fingerprints = _fingerprints(system, key)
    if fingerprints != [fingerprint]:
        raise Failure(
            f"the repository's key, with the fingerprint {fingerprint}",
            f"{url} has {' '.join(fingerprints) or 'no key at all'}",
            "the owner of another key could have anything installed here as root; so this key was refused",
            "if a mirror or a proxy is in between, have it pass the key on as it is; if NVIDIA has replaced its key, "
            "you need a newer release of this program",
        )
    binary = system.run.ask(*_GPG, "--dearmor", stdin=key)
    if binary.status != 0 or not binary.output:
        raise Failure(
            f"the key of {url} in binary form",
            f"gpg --dearmor failed: {binary.failure('gpg')}",
            "apt takes the key in that form",
            "see what gpg says of it, then run `pulumi up` again",
        )
    files.put(packages.layer, keyring, 0o644, binary.output)
    files.remove(_KEY)


def _fingerprints(system: System, key: bytes) -> list[str]:
    """Of every primary key."""
    shown = system.run.ask(*_GPG, "--no-keyring", "--trust-model", "always", "--show-keys", "--with-colons", stdin=key)
    fingerprints, is_primary = [], False
    for fields in (line.split(":") for line in shown.text.split("\n")):
        if fields[0] == "fpr" and is_primary and len(fields) > 9:
            fingerprints.append(fields[9])
            is_primary = False
        is_primary = is_primary or fields[0] == "pub"
    return fingerprints
