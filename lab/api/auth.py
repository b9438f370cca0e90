"""Who a request comes from: tickets with their CSRF tokens, and API tokens; and what they are made with."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from lab.host.cluster import Cluster
from lab.host.state import HostState
from lab.state import write_whole

from .errors import ApiError
from .users import Caller, User, Users

# PVE::AccessControl: a ticket is good for two hours, a CSRF token for a bit longer than a day.
_TICKET_SECONDS = 2 * 3600
_CSRF_SECONDS = 24 * 3600
_TOKEN = re.compile(r"PVEAPIToken[= ](?P<user>[^!=\s]+)!(?P<token>[^=\s]+)=(?P<secret>\S+)")


@dataclass(frozen=True)
class Secrets:
    """What a lab's clients log in with, and what its tickets are signed with; kept over resets."""

    password: str
    token: str
    ticket_key: str

    @classmethod
    def of(cls, host: HostState) -> Secrets:
        """Those of a host, made when it has none: a cluster's nodes have one list of users and one key for tickets."""
        cluster = Cluster.of(host)
        path = (cluster.folder if cluster else host.state) / "api/secrets.json"
        if not path.exists():
            made = {
                "password": secrets.token_urlsafe(12),
                "token": str(uuid.uuid4()),
                "ticket_key": secrets.token_hex(32),
            }
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(path, json.dumps(made, indent=1) + "\n")
            path.chmod(0o600)
        return cls(**json.loads(path.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Login:
    """What a login gives: a ticket for the cookie, and the token that writing requests send with it."""

    ticket: str
    csrf: str


class Authenticator:
    """Makes tickets and recognises callers.

    Args:
        key: what tickets are signed with.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def of(cls, host: HostState) -> Authenticator:
        """A host's own."""
        return cls(bytes.fromhex(Secrets.of(host).ticket_key))

    def ticket(self, name: str, now: float) -> str:
        """Make a user's ticket, at a time in seconds since 1970."""
        text = f"PVE:{name}:{int(now):08X}"
        return f"{text}::{self._sign(text)}"

    def log_in(self, users: Users, name: str, password: str) -> Login:
        """Check a user's password, or an earlier ticket in its place, and make a ticket.

        Raises:
            ApiError: 401 `authentication failure`.
        """
        user = users.users.get(name)
        known = user is not None and user.enabled and not 0 < user.expires < users.now
        if not known or not (users.has_password(name, password) or self._ticket_of(password, users.now) == name):
            raise ApiError(401, "authentication failure\n")
        stamp = f"{int(users.now):08X}"
        return Login(self.ticket(name, users.now), f"{stamp}:{self._sign(f'{stamp}:{name}')}")

    def caller(self, users: Users, headers: Mapping[str, str], cookie: str | None, *, csrf: bool) -> Caller:
        """Recognise who sends a request.

        Args:
            cookie: PVEAuthCookie's value.
            csrf: whether a ticket needs a CSRF token beside it.

        Raises:
            ApiError: 401 with an empty body.
        """
        authorization = headers.get("Authorization", "")
        if authorization.startswith("PVEAPIToken"):
            return self._by_token(users, authorization)
        if cookie is None:
            raise _refused("No ticket")
        name = self._ticket_of(unquote(cookie), users.now)
        # Who is in no list is somebody whom a test invents (`Lab.ask_api`).
        if name is None or not users.users.get(name, User()).enabled:
            raise _refused("permission denied - invalid PVE ticket")
        if csrf and not self._is_csrf(headers.get("CSRFPreventionToken", ""), name, users.now):
            raise _refused("Permission denied - invalid csrf token")
        return Caller(name)

    def _by_token(self, users: Users, authorization: str) -> Caller:
        match = _TOKEN.fullmatch(authorization)
        user = users.users.get(match["user"]) if match else None
        token = user.tokens.get(match["token"]) if user and match else None
        if match is None or user is None or token is None or not user.enabled:
            raise _refused("Authentication failed!")
        expired = any(0 < moment < users.now for moment in (user.expires, token.expires))
        caller = Caller(match["user"], match["token"])
        if expired or not users.has_token_secret(caller.identity, match["secret"]):
            raise _refused("Authentication failed!")
        return caller

    def _ticket_of(self, ticket: str, now: float) -> str | None:
        """The user whose valid ticket it is."""
        text, _, signature = ticket.partition("::")
        match = re.fullmatch(r"PVE:([^:]+):([0-9A-F]{8})", text)
        if match is None or not hmac.compare_digest(signature.encode(), self._sign(text).encode()):
            return None
        return match[1] if 0 <= now - int(match[2], 16) + 300 < _TICKET_SECONDS + 300 else None

    def _is_csrf(self, token: str, user: str, now: float) -> bool:
        stamp, _, signature = token.partition(":")
        if not re.fullmatch(r"[0-9A-F]{8}", stamp) or now - int(stamp, 16) > _CSRF_SECONDS:
            return False
        return hmac.compare_digest(signature.encode(), self._sign(f"{stamp}:{user}").encode())

    def _sign(self, text: str) -> str:
        return base64.b64encode(hmac.digest(self._key, text.encode(), hashlib.sha256)).decode()


def _refused(why: str) -> ApiError:
    return ApiError(401, why, body=False)
