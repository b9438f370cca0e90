"""How a host is reached: over SSH, and by the Proxmox VE API."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import field_validator, model_validator

from homelab.errors import HomelabError
from homelab.model import Model
from homelab.settings.keys import PublicKey, public_key
from homelab.settings.paths import resolved, text_of
from homelab.settings.types import (
    LocalPath,
    Plain,
    Port,
    PrivateKey,
    Secret,
    Text,
    UnixUser,
)

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
# No blank of any language is in a user's name.
_USER = r"(?u:[^\s:/!@,]+)@[A-Za-z][A-Za-z0-9._-]+"
ApiToken = Annotated[
    str, Text("id of a token", rf"{_USER}![A-Za-z][A-Za-z0-9._-]+", "a token's id such as homelab@pve!pulumi")
]
ApiUser = Annotated[str, Text("user with its realm", _USER, "a user with its realm, such as root@pam")]


class SshLogin(Model):
    """How the program logs in over SSH: exactly one of `privateKeyFile`, `privateKey`, `password` and `agent`."""

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

    @model_validator(mode="after")
    def _one_login(self) -> Self:
        ways = [self.private_key_file, self.private_key, self.password, self.agent or None]
        if sum(way is not None for way in ways) != 1:
            raise ValueError("expected exactly one of privateKeyFile, privateKey, password, agent")
        return self

    @property
    def key(self) -> str | None:
        """The private key's text; None where a password or an agent is used.

        :raises HomelabError: privateKeyFile can't be read.
        """
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
                next="correct privateKeyFile, or make a key with `ssh-keygen -t ed25519` and `ssh-copy-id` it to "
                "the host",
            ) from error


class Ssh(SshLogin):
    """How a host or a VM is reached over SSH: one way to log in, and the host key that is expected."""

    host_key: PublicKey | None = None
    """The host's public key, which must answer. `ssh-keyscan -t ed25519 ADDRESS` prints it; leave the address out, and
    compare the key with the one that the host shows on its own console. Set this or `hostKeyFile`."""
    host_key_file: LocalPath | None = None
    """A file with the host's public key. Set this or `hostKey`."""

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


class ApiAccess(Model):
    """How the Proxmox VE API is reached. Log in with `token` and `tokenSecret`, or with `user` and `password`. Exactly
    one of `caFile`, `fingerprint` and `publicCa` says how the host's certificate is checked."""

    port: Port = 8006
    """The port of the API."""
    token: ApiToken | None = None
    """The id of an API token, such as `homelab@pve!pulumi`."""
    token_secret: Secret | None = None
    """The token's secret, as an encrypted value."""
    user: ApiUser | None = None
    """A user with its realm, such as `root@pam`, instead of a token."""
    password: Secret | None = None
    """The user's password, as an encrypted value."""
    ca_file: LocalPath | None = None
    """A copy of the host's `/etc/pve/pve-root-ca.pem`."""
    fingerprint: Plain | None = None
    """The SHA-256 fingerprint of the host's certificate.
    `openssl x509 -in /etc/pve/local/pve-ssl.pem -noout -fingerprint -sha256` prints it on the host; where there is a
    `pveproxy-ssl.pem`, take that file. The first fingerprint that `pvenode cert info` lists belongs to the authority
    and never fits."""
    public_ca: bool = False
    """`true`: an authority that this machine trusts already has signed the certificate."""

    @field_validator("fingerprint")
    @classmethod
    def _sha256(cls, value: str | None) -> str | None:
        plain = value and value.replace(":", "").lower()
        if plain is not None and not _FINGERPRINT.fullmatch(plain):
            raise ValueError(
                "expected a SHA-256 fingerprint, 64 hexadecimal digits "
                "(`openssl x509 -in /etc/pve/local/pve-ssl.pem -noout -fingerprint -sha256`)"
            )
        return plain

    @model_validator(mode="after")
    def _one_login_and_check(self) -> Self:
        by_token = (self.token is not None, self.token_secret is not None)
        by_user = (self.user is not None, self.password is not None)
        if (by_token, by_user) not in (((True, True), (False, False)), ((False, False), (True, True))):
            raise ValueError("expected token and tokenSecret, or user and password")
        if sum((self.ca_file is not None, self.fingerprint is not None, self.public_ca)) != 1:
            raise ValueError(
                "expected exactly one of caFile, fingerprint, publicCa: without it, the program would send the "
                "credentials to any machine that answers at the address"
            )
        return self

    @property
    def is_root(self) -> bool:
        """Whether this is root@pam itself, which alone may use a device by its address; a token of root@pam may not."""
        return self.user == "root@pam"

    @property
    def ca_path(self) -> Path | None:
        """The file with the certificate authority to trust; None without caFile.

        :raises HomelabError: there is no such file.
        """
        if self.ca_file is None:
            return None
        path = resolved(self.ca_file)
        if not path.is_file():
            raise HomelabError(
                wanted=f"the certificate authority of the host in {path} (api.caFile)",
                found="no such file",
                why="without it the program can't tell whether the right host answers",
                next="copy the host's /etc/pve/pve-root-ca.pem there, or set api.fingerprint",
            )
        return path
