"""How a host or a VM is reached over SSH."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import PrivateAttr, model_validator

from homelab.errors import HomelabError
from homelab.fields.keys import PublicKey, public_key
from homelab.fields.model import Model
from homelab.fields.paths import resolved, text_of
from homelab.fields.types import ENCRYPTED, LocalPath, Port, PrivateKey, Secret, UnixUser


class Ssh(Model):
    """How a host or a VM is reached over SSH: one way to log in (exactly one of `privateKeyFile`, `privateKey`,
    `password` and `agent`), and the host key that is expected."""

    user: UnixUser = "root"
    """Who logs in. Any other user than root needs `sudo -n bash` without a password."""
    port: Port = 22
    """The port of the SSH server."""
    private_key_file: LocalPath | None = None
    """A file with a private key without a passphrase. Set exactly one of `privateKeyFile`, `privateKey`, `password` and
    `agent`."""
    private_key: PrivateKey | None = None
    """The text of a private key, as an encrypted value."""
    password: Secret | None = None
    """The user's password, as an encrypted value."""
    agent: bool = False
    """`true`: the SSH agent of this machine logs in. Not on Windows."""

    host_key: PublicKey | None = None
    """The host's public key, which must answer. `ssh-keyscan -t ed25519 ADDRESS` prints it; leave the address out, and
    compare the key with the one that the host shows on its own console. Set this or `hostKeyFile`."""
    host_key_file: LocalPath | None = None
    """A file with the host's public key. Set this or `hostKey`."""

    _later: Mapping[str, Any] = PrivateAttr(default_factory=dict)

    def know_later(self, values: Mapping[str, Any]) -> None:
        """Notes what stands for a secret that is known later than the settings.

        :param values: a text that is set here -> the value for which it stands.
        """
        self._later = values

    def by_key(self, file: str | None) -> Self:
        """The same, logging in with a private key's file, whose path counts from here; None: as it is."""
        if file is None:
            return self
        path = str(Path(file).expanduser().absolute())
        ways = {"private_key_file": path, "private_key": None, "password": None, "agent": False}
        return self.model_copy(update=ways)

    def value_of(self, secret: str) -> Any:
        """A secret's value, or that for which it stands."""
        return self._later.get(secret, secret)

    @model_validator(mode="after")
    def _one_login(self) -> Self:
        ways = [self.private_key_file, self.private_key, self.password, self.agent or None]
        if sum(way is not None for way in ways) != 1:
            raise ValueError("expected exactly one of privateKeyFile, privateKey, password, agent")
        return self

    @property
    def key(self) -> str | None:
        """The private key's text; None where a password or an agent is used.

        :raises HomelabError: privateKeyFile can't be read, or what logs in is encrypted.
        """
        for name, secret in (("privateKey", self.private_key), ("password", self.password)):
            if secret is not None and secret.get_secret_value() == ENCRYPTED:
                raise HomelabError(
                    wanted=f"to log in with ssh.{name}",
                    found=f"ssh.{name} is encrypted, and only Pulumi can read it",
                    why="this command runs without Pulumi, its backend and its passphrase",
                    next="give a key with --identity FILE; or log in with ssh.privateKeyFile or ssh.agent, which need "
                    "no secret in the file",
                )
        if self.private_key is not None:
            return self.private_key.get_secret_value()
        if self.private_key_file is None:
            return None
        path = resolved(self.private_key_file)
        try:
            return text_of(path).replace("\r\n", "\n")
        except (OSError, UnicodeDecodeError) as error:
            raise HomelabError(
                wanted=f"an SSH private key in {path} (privateKeyFile)",
                found=f"{type(error).__name__}: {error}",
                why="nothing on the host can be read or changed without it",
                next=f"correct privateKeyFile, or make the key, without a passphrase: `ssh-keygen -t ed25519 -f "
                f"{shlex.quote(str(path))}`; the next run says how to put it onto the host",
            ) from error

    @model_validator(mode="after")
    def _one_host_key(self) -> Self:
        if (self.host_key is None) == (self.host_key_file is None):
            raise ValueError(
                "expected hostKey (the line that `ssh-keyscan -t ed25519 ADDRESS` prints, without the address) or "
                "hostKeyFile: without it, the program would send root's commands to any machine that answers at the "
                "address"
            )
        return self

    @property
    def pinned_host_key(self) -> str:
        """The host's public key, as `type base64`.

        :raises HomelabError: hostKeyFile can't be read.
        """
        if self.host_key is not None:
            return " ".join(self.host_key.split()[:2])
        path = resolved(self.host_key_file or "")
        try:
            return " ".join(public_key(text_of(path).strip()).split()[:2])
        except (OSError, ValueError) as error:  # a UnicodeDecodeError is a ValueError, too
            raise HomelabError(
                wanted=f"the host's public key in {path}",
                found=str(error),
                why="without it the program can't tell whether the right host answers",
                next="save it there (the line that `ssh-keyscan -t ed25519 ADDRESS` prints, without the address), "
                "or set hostKey",
            ) from error
