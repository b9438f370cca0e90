"""The first contact with a host, for `homelab init`: its host key without a login, whether a login works, keys made and
authorized, commands run one by one.
"""

from __future__ import annotations

import asyncio
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import asyncssh

from homelab.errors import HomelabError, LoginRefusedError, UnreachableError
from homelab.remote import loop, ssh
from homelab.settings import Host

# Types of host keys that a host is asked for, in this order; every Proxmox VE host has the first, as have the examples
# of the settings. By an RSA key pulumi-command recognises no host (homelab/resources/command.py).
_KEY_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256")
# As long as OpenSSH from 9.8 on (Proxmox VE 9) cuts off at once who it has refused a few times, and some seconds
# (sshd_config(5), PerSourcePenalties).
LOCKED_OUT_SECONDS = 30
# Keys that `ssh` looks for by itself, newest kind first (ssh_config(5), IdentityFile).
_USUAL_KEY_FILES = ("id_ed25519", "homelab_ed25519", "id_ecdsa", "id_rsa")


@dataclass(frozen=True)
class HostKey:
    """A host's public key. `line`: type and base64, as in the settings; `fingerprint`: SHA256:…, as ssh-keygen prints
    it.
    """

    line: str
    fingerprint: str


def host_key(address: str, port: int, seconds: float) -> HostKey:
    """The key that a host shows; the user hasn't confirmed it.

    :param seconds: for the answer.
    :raises UnreachableError: the host doesn't answer in time.
    :raises HomelabError: it has no key of these types.
    """

    async def ask_for_key() -> asyncssh.SSHKey | None:
        for key_type in _KEY_TYPES:
            with suppress(asyncssh.KeyExchangeFailed):
                return await asyncssh.get_server_host_key(address, port, server_host_key_algs=[key_type], config=None)
        return None

    try:
        host_public_key = loop.run(asyncio.wait_for(ask_for_key(), seconds))
    except (OSError, TimeoutError, asyncssh.Error) as error:
        raise UnreachableError(
            wanted=f"an SSH server at {address}:{port}",
            found=f"{type(error).__name__}: {error}",
            why="the host can be neither read nor changed",
            next="see whether it is switched on and connected to this network, and whether address and --port are "
            "right",
        ) from error
    if host_public_key is None:
        raise HomelabError(
            wanted=f"a host key of {address}:{port}",
            found=f"none of the kinds {', '.join(_KEY_TYPES)}",
            why="without it you can't tell whether the right host answers",
            next="look on the host's console for /etc/ssh/ssh_host_ed25519_key.pub; ssh-keygen -A makes it where it "
            "is missing",
        )
    line = " ".join(host_public_key.export_public_key().decode("ascii").split()[:2])
    return HostKey(line, host_public_key.get_fingerprint())


def of_line(line: str) -> HostKey:
    """A host key from its line: type, base64 and maybe a comment."""
    return HostKey(" ".join(line.split()[:2]), asyncssh.import_public_key(line).get_fingerprint())


Standing = Literal["known", "another", "revoked", "unknown"]


def standing(address: str, port: int, key: HostKey, known_hosts: Path) -> Standing:
    """A host key compared with the user's known_hosts: known; another: the file has another key of that host, of the
    same kind; revoked: by a line with `@revoked`; unknown.
    """
    try:
        lines = known_hosts.read_bytes().splitlines()
    except OSError:
        return "unknown"
    trusted_keys, revoked_keys = list[asyncssh.SSHKey](), list[asyncssh.SSHKey]()
    for line in lines:
        with suppress(ValueError):  # as `ssh`, which passes over a line that it doesn't understand
            trusted, _, revoked = asyncssh.match_known_hosts(line, address, "", port)[:3]
            trusted_keys += trusted
            revoked_keys += revoked
    if key.fingerprint in {known_key.get_fingerprint() for known_key in revoked_keys}:
        return "revoked"
    if key.fingerprint in {known_key.get_fingerprint() for known_key in trusted_keys}:
        return "known"
    kind = key.line.split()[0]
    return "another" if any(known_key.get_algorithm() == kind for known_key in trusted_keys) else "unknown"


def usual_keys(folder: Path) -> list[Path]:
    """The private keys in a folder, by `ssh`'s usual names, that have no passphrase."""
    paths = []
    for name in _USUAL_KEY_FILES:
        path = folder / name
        try:
            asyncssh.read_private_key(path)
        except (OSError, ValueError, asyncssh.KeyImportError):
            continue  # none, or one with a passphrase, which only an agent can use
        paths.append(path)
    return paths


def refusal(host: Host, *, is_first: bool = True) -> LoginRefusedError | None:
    """The error by which the host refuses a login with these settings; None: it accepts it.

    :param is_first: it has refused none before, and so has no reason to lock this machine out for a while.
    :raises HomelabError: the host can't be reached, or shows another key.
    """
    patient = host.timeouts.model_copy(update={"connect": LOCKED_OUT_SECONDS})
    try:
        loop.run(ssh.log_in(host) if is_first else ssh.reach(host.model_copy(update={"timeouts": patient})))
    except LoginRefusedError as error:
        return error
    return None


def make_key(path: Path) -> str:
    """Makes a key pair without a passphrase at `path` and `path`.pub, unless it exists; returns the public key's line
    (type and base64).
    """
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = asyncssh.generate_private_key("ssh-ed25519", comment="homelab")
        path.with_name(f"{path.name}.pub").write_bytes(key.export_public_key())
        # Whole or not at all: half a key would stand in the way of the next run.
        unfinished = path.with_name(f"{path.name}.new")
        unfinished.unlink(missing_ok=True)
        unfinished.touch(mode=0o600)
        unfinished.write_bytes(key.export_private_key())
        unfinished.replace(path)
    return public_half(path)


def public_half(path: Path) -> str:
    """The public key of a private key's file: type and base64, as in authorized_keys."""
    key = asyncssh.read_private_key(path)
    return " ".join(key.export_public_key().decode("ascii").split()[:2])


def public_key_of(path: Path) -> str:
    """The public key (type and base64) in a file, in that file's .pub, or of the private key in it; empty: there is
    none, or it can't be read.
    """
    for candidate in (path, path.with_name(f"{path.name}.pub")):
        try:
            return " ".join(asyncssh.read_public_key(candidate).export_public_key().decode("ascii").split()[:2])
        except (OSError, ValueError, asyncssh.KeyImportError):
            continue
    try:
        return public_half(path)
    except (OSError, ValueError, asyncssh.KeyImportError):
        return ""


def authorizing_command(line: str, user: str) -> str:
    """The shell command that adds a public key to a user's authorized_keys, unless it is there.

    It runs as root: for another user, whose command sudo runs, `runuser` makes `~` that user's home.
    """
    key, file = shlex.quote(f"{line} homelab"), "~/.ssh/authorized_keys"
    # An editor may have left the last line without its end.
    command = (
        f"umask 077 && mkdir -p ~/.ssh && touch {file} && {{ grep -qF {shlex.quote(line.split()[1])} {file} || "
        f"{{ [ -z \"$(tail -c1 {file})\" ] || echo >>{file}; printf '%s\\n' {key} >>{file}; }}; }}"
    )
    return command if user == "root" else f"runuser -l {shlex.quote(user)} -s /bin/bash -c {shlex.quote(command)}"


def carry_out(host: Host, command: str) -> None:
    """Runs a command.

    :raises HomelabError: it failed.
    """
    try:
        ssh.Session(host).run("init", f"{command}\n")
    except UnreachableError:
        raise
    except HomelabError as error:
        raise error.retold(
            wanted=f"on {host.address}: {command}",
            why="everything after it depends on it",
            next="correct what it reports on the host, and run homelab init again: it goes on from here",
        ) from error
