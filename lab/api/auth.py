"""Tickets, by which a request says whom it comes from; and root's password, by which SSH lets root in."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
from dataclasses import dataclass
from urllib.parse import unquote

from lab.host.cluster import Cluster
from lab.host.state import HostState, write_atomically

from .errors import ApiError

ROOT = "root@pam"
# PVE::AccessControl: a ticket is good for two hours, and for five minutes before its time.
_TICKET_SECONDS, _EARLY_SECONDS = 2 * 3600, 300


@dataclass(frozen=True)
class Secrets:
    """root's password on a host, and the key that its tickets are signed with; kept over resets."""

    password: str
    ticket_key: str

    @classmethod
    def of(cls, host: HostState) -> Secrets:
        """Those of a host, made when it has none: a cluster's nodes have one key for tickets."""
        cluster = Cluster.of(host)
        path = (cluster.folder if cluster else host.state) / "api/secrets.json"
        if not path.exists():
            made = {"password": secrets.token_urlsafe(12), "ticket_key": secrets.token_hex(32)}
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(path, json.dumps(made, indent=1) + "\n")
            path.chmod(0o600)
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def ticket(host: HostState, user: str) -> str:
    """A user's ticket, from now on. The lab has no list of users: it signs one for any name."""
    text = f"PVE:{user}:{host.clock():08X}"
    return f"{text}::{_signature(host, text)}"


def user_of(host: HostState, cookie: str | None) -> str:
    """The user whose valid ticket a request has.

    Args:
        cookie: PVEAuthCookie's value.

    Raises:
        ApiError: 401 with an empty body.
    """
    if cookie is None:
        raise ApiError(401, "No ticket", body=False)
    text, _, signature = unquote(cookie).partition("::")
    match = re.fullmatch(r"PVE:([^:]+):([0-9A-F]{8})", text)
    if (
        match is None
        or not hmac.compare_digest(signature.encode(), _signature(host, text).encode())
        or not -_EARLY_SECONDS <= host.clock() - int(match[2], 16) < _TICKET_SECONDS
        or not is_enabled(host, match[1])
    ):
        raise ApiError(401, "permission denied - invalid PVE ticket", body=False)
    return match[1]


def is_enabled(host: HostState, user: str) -> bool:
    """Whether /etc/pve/user.cfg doesn't disable a user."""
    return f"user:{user}:0:" not in host.read("/etc/pve/user.cfg", "")


def _signature(host: HostState, text: str) -> str:
    key = bytes.fromhex(Secrets.of(host).ticket_key)
    return base64.b64encode(hmac.digest(key, text.encode(), hashlib.sha256)).decode()
