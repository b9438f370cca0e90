"""The first contact with a host: its key, seen without logging in; which way in works; a public key put there; commands
run one by one."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import asyncssh

from homelab.errors import HomelabError, LoginRefusedError, UnreachableError
from homelab.remote import ssh
from homelab.settings import Host

# What a host's key is asked for, in this order: what the settings' examples have, and every Proxmox VE host has.
_KINDS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512")
# Keys that `ssh` looks for by itself, newest kind first (ssh_config(5), IdentityFile).
_USUAL_KEYS = ("id_ed25519", "homelab_ed25519", "id_ecdsa", "id_rsa")


@dataclass(frozen=True)
class HostKey:
    """`line`: type and base64, as the settings have it; `fingerprint`: SHA256:…, as ssh-keygen prints it."""

    line: str
    fingerprint: str


def host_key(address: str, port: int, seconds: float) -> HostKey:
    """The key that a host shows, which nobody has confirmed.

    :raises UnreachableError: nobody answers in time.
    """

    async def ask() -> asyncssh.SSHKey | None:
        for kind in _KINDS:
            try:
                key = await asyncssh.get_server_host_key(address, port, server_host_key_algs=[kind], config=None)
            except asyncssh.KeyExchangeFailed:
                continue
            if key is not None:
                return key
        return None

    async def in_time() -> asyncssh.SSHKey | None:
        async with asyncio.timeout(seconds):
            return await ask()

    try:
        found = asyncio.run(in_time())
    except (OSError, TimeoutError, asyncssh.Error) as error:
        raise UnreachableError(
            wanted=f"an SSH server at {address}:{port}",
            found=f"{type(error).__name__}: {error}",
            why="the host can be neither read nor changed",
            next="see whether it is switched on and connected to this network, and whether address and --port are "
            "right",
        ) from error
    if found is None:
        raise HomelabError(
            wanted=f"a host key of {address}:{port}",
            found=f"none of the kinds {', '.join(_KINDS)}",
            why="without it nobody can tell whether the right host answers",
            next="look on the host's console for /etc/ssh/ssh_host_ed25519_key.pub; ssh-keygen -A makes it where it "
            "is missing",
        )
    line = " ".join(found.export_public_key().decode("ascii").split()[:2])
    return HostKey(line, found.get_fingerprint())


def of_line(line: str) -> HostKey:
    """A host key from its line."""
    return HostKey(" ".join(line.split()[:2]), asyncssh.import_public_key(line).get_fingerprint())


Standing = Literal["known", "another", "revoked", "unknown"]


def standing(address: str, port: int, key: HostKey, known_hosts: Path) -> Standing:
    """What this person's known_hosts says of a host's key: known; another one is known; revoked (a line with
    `@revoked`); nothing."""
    try:
        trusted, _, revoked = asyncssh.match_known_hosts(str(known_hosts), address, address, port)[:3]
    except (OSError, ValueError):
        return "unknown"
    if key.fingerprint in {str(one.get_fingerprint()) for one in revoked}:
        return "revoked"
    prints = {str(one.get_fingerprint()) for one in trusted}
    return "known" if key.fingerprint in prints else "another" if prints else "unknown"


def usual_keys(folder: Path) -> list[Path]:
    """The private keys in a folder that can be used as they are: without a passphrase."""
    found = []
    for name in _USUAL_KEYS:
        path = folder / name
        try:
            asyncssh.read_private_key(path)
        except (OSError, ValueError, asyncssh.KeyImportError):
            continue  # none, or one with a passphrase, which only an agent can use
        found.append(path)
    return found


def refusal(host: Host) -> LoginRefusedError | None:
    """Why this login isn't let in; None: it is.

    :raises HomelabError: the host can't be reached, or isn't the right one.
    """

    async def knock() -> None:
        async with ssh.connect(host):
            pass

    try:
        asyncio.run(knock())
    except LoginRefusedError as error:
        return error
    return None


def make_key(path: Path) -> str:
    """Makes a key pair without a passphrase, unless it is there, and returns the public one's line."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = asyncssh.generate_private_key("ssh-ed25519", comment="homelab")
        path.with_name(f"{path.name}.pub").write_bytes(key.export_public_key())
        # Whole or not at all: half a key would stand in the way of the next run.
        half = path.with_name(f"{path.name}.new")
        half.unlink(missing_ok=True)
        half.touch(mode=0o600)
        half.write_bytes(key.export_private_key())
        half.replace(path)
    return public_half(path)


def public_half(path: Path) -> str:
    """A private key's public half, as authorized_keys has it."""
    key = asyncssh.read_private_key(path)
    return " ".join(key.export_public_key().decode("ascii").split()[:2])


def public_key_of(path: Path) -> str:
    """The public key in a file, or that of a private key; empty: there is none, or it can't be read."""
    for candidate in (path, path.with_name(f"{path.name}.pub")):
        try:
            return " ".join(asyncssh.read_public_key(candidate).export_public_key().decode("ascii").split()[:2])
        except (OSError, ValueError, asyncssh.KeyImportError):
            continue
    try:
        return public_half(path)
    except (OSError, ValueError, asyncssh.KeyImportError):
        return ""


def installing(line: str, user: str) -> str:
    """The command that lets a public key in, once. Another user than root has it run by sudo, whose home is root's:
    theirs is meant."""
    key = shlex.quote(f"{line} homelab")
    command = (
        "umask 077 && mkdir -p ~/.ssh && touch ~/.ssh/authorized_keys && "
        f"{{ grep -qF {shlex.quote(line.split()[1])} ~/.ssh/authorized_keys || printf '%s\\n' {key} "
        f">>~/.ssh/authorized_keys; }}"
    )
    return command if user == "root" else f"runuser -l {shlex.quote(user)} -s /bin/bash -c {shlex.quote(command)}"


def carry_out(host: Host, commands: list[str], done: Callable[[str, str], None]) -> None:
    """Runs commands one after the other, over one connection.

    :param done: is called after each, with the command and what it printed.
    :raises HomelabError: one failed; those before it are done.
    """

    async def run() -> None:
        async with ssh.connect(host) as session:
            for command in commands:
                try:
                    printed = await session.run("init", f"{command}\n")
                except UnreachableError:
                    raise
                except HomelabError as error:
                    raise HomelabError(
                        wanted=f"on {host.address}: {command}",
                        found=error.found,
                        why="everything after it depends on it",
                        next="correct what it reports on the host, and run homelab init again: it goes on from here",
                    ) from error
                done(command, printed)

    asyncio.run(run())
