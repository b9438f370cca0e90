"""First contact with a host, for `homelab init`: its key before a login, whether a login works, a key put there."""

from __future__ import annotations

import shlex
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import asyncssh

from homelab.errors import LoginRefusedError
from homelab.fields.paths import replace_whole
from homelab.remote import logins, loop, ssh
from homelab.settings import Host

# Types of host keys that a host is asked for, in this order; every Proxmox VE host has the first. By an RSA key
# pulumi-command recognises no host (homelab/resources/command.py).
_KEY_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256")
# For so long OpenSSH from 9.8 on (Proxmox VE 9) cuts off a client that it has refused a few times (sshd_config(5),
# PerSourcePenalties), and some seconds more.
LOCKED_OUT_SECONDS = 30
# Keys that `ssh` looks for by itself, newest kind first (ssh_config(5), IdentityFile).
_USUAL_KEY_FILES = ("id_ed25519", "homelab_ed25519", "id_ecdsa", "id_rsa")
# What asyncssh says of a key with a passphrase.
_LOCKED = "Passphrase must be specified to import encrypted private keys"
CONNECT_SECONDS = 15.0


@dataclass(frozen=True)
class HostKey:
    """A host's public key. `line`: type and base64, as in the settings; `fingerprint`: SHA256:…, as ssh-keygen prints
    it."""

    line: str
    fingerprint: str

    def is_named(self, text: str) -> bool:
        """Whether the text is its fingerprint or its line."""
        return text.strip() == self.fingerprint or text.split()[:2] == self.line.split()


def host_key(address: str, port: int) -> HostKey:
    """The key that a host shows; the user hasn't confirmed it.

    :raises UnreachableError: the host doesn't answer in time, or has no key of these types.
    """
    try:
        key = loop.run(logins.shown_key(address, port, CONNECT_SECONDS, _KEY_TYPES), awaited=address)
    except (OSError, TimeoutError, asyncssh.Error) as error:
        raise logins.unreachable(address, port, error).retold(
            wanted=f"an SSH server at {address}:{port}, with a host key of the kind {' or '.join(_KEY_TYPES)}",
            next="see whether it is switched on and connected to this network, and whether the address is right "
            "(HOST:PORT for another port than 22)",
        ) from error
    return of_line(key.export_public_key().decode("ascii"))


def of_line(line: str) -> HostKey:
    """A host key from its line: type, base64 and maybe a comment."""
    return HostKey(" ".join(line.split()[:2]), asyncssh.import_public_key(line).get_fingerprint())


Standing = Literal["known", "another", "revoked", "unknown"]


def standing(address: str, port: int, key: HostKey, known_hosts: Path) -> Standing:
    """A host key compared with the user's known_hosts: known; another: the file has another key of that host, of the
    same kind; revoked: by a line with `@revoked`; unknown.
    """
    trusted, revoked = list[asyncssh.SSHKey](), list[asyncssh.SSHKey]()
    for line in known_hosts.read_bytes().splitlines() if known_hosts.is_file() else ():
        with suppress(ValueError):  # as `ssh`, which passes over a line that it doesn't understand
            of_line_trusted, _, of_line_revoked = asyncssh.match_known_hosts(line, address, "", port)[:3]
            trusted += of_line_trusted
            revoked += of_line_revoked
    if key.fingerprint in {known.get_fingerprint() for known in revoked}:
        return "revoked"
    if key.fingerprint in {known.get_fingerprint() for known in trusted}:
        return "known"
    return "another" if any(known.get_algorithm() == key.line.split()[0] for known in trusted) else "unknown"


def usual_keys(folder: Path, *, locked: bool = False) -> list[Path]:
    """The private keys in a folder, by `ssh`'s usual names, that have no passphrase.

    :param locked: those that have one instead, and that only an agent can use.
    """
    paths = [folder / name for name in _USUAL_KEY_FILES]
    return [path for path in paths if _unreadable(path) == (_LOCKED if locked else "")]


def _unreadable(path: Path) -> str:
    try:
        asyncssh.read_private_key(path)
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def refusal(host: Host) -> LoginRefusedError | None:
    """The error by which the host refuses a login with these settings; None: it accepts it.

    :raises HomelabError: the host can't be reached, or shows another key.
    """

    patient = host.timeouts.model_copy(update={"connect": LOCKED_OUT_SECONDS})
    try:
        loop.run(logins.reach(host.model_copy(update={"timeouts": patient})), awaited=host.address)
    except LoginRefusedError as error:
        return error
    return None


@cache
def _new_key(_path: Path) -> asyncssh.SSHKey:
    return asyncssh.generate_private_key("ssh-ed25519", comment="homelab")


def public_line(path: Path) -> str:
    """The public key (type and base64) of a private key, also of one that `made` is to make there."""
    text = path.read_text(encoding="utf-8") if path.exists() else _new_key(path).export_private_key().decode("ascii")
    return logins.public_half(text)


def made(path: Path) -> str:
    """Makes a key pair without a passphrase at `path` and `path`.pub, unless it exists; returns the public key's line
    (type and base64).
    """
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = _new_key(path)
        path.with_name(f"{path.name}.pub").write_bytes(key.export_public_key())
        # Half a key would stand in the way of the next run.
        replace_whole(path, key.export_private_key())
    return public_line(path)


def authorizing(line: str, user: str) -> str:
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


def authorize(host: Host, path: Path) -> None:
    """Puts the public half of a private key, which is made unless it exists, into the user's authorized_keys.

    :raises HomelabError: the host refuses it.
    """
    ssh.Session(host).run("init", f"{authorizing(made(path), host.ssh.user)}\n")
