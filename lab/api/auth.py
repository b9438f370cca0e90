"""Who a request comes from: tickets with their CSRF tokens, and API tokens."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from .errors import ApiError
from .users import Caller, Users

# PVE::AccessControl: a ticket is good for two hours, a CSRF token for a bit longer than a day.
_TICKET_SECONDS = 2 * 3600
_CSRF_SECONDS = 24 * 3600
_TOKEN = re.compile(r"PVEAPIToken[= ](?P<user>[^!=\s]+)!(?P<token>[^=\s]+)=(?P<secret>\S+)")


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

    def log_in(self, users: Users, name: str, password: str) -> Login:
        """Check a user's password, or an earlier ticket in its place, and make a ticket.

        Raises:
            ApiError: 401 `authentication failure`.
        """
        user = users.users.get(name)
        known = user is not None and user.enabled and not 0 < user.expires < time.time()
        if not known or not (users.has_password(name, password) or self._ticket_of(password) == name):
            raise ApiError(401, "authentication failure\n")
        text = f"PVE:{name}:{int(time.time()):08X}"
        stamp = f"{int(time.time()):08X}"
        return Login(f"{text}::{self._sign(text)}", f"{stamp}:{self._sign(f'{stamp}:{name}')}")

    def caller(self, users: Users, method: str, headers: Mapping[str, str], cookie: str | None) -> Caller:
        """Recognise who sends a request.

        Args:
            cookie: PVEAuthCookie's value.

        Raises:
            ApiError: 401 with an empty body.
        """
        authorization = headers.get("Authorization", "")
        if authorization.startswith("PVEAPIToken"):
            return self._by_token(users, authorization)
        if cookie is None:
            raise _refused("No ticket")
        name = self._ticket_of(unquote(cookie))
        if name is None or name not in users.users or not users.users[name].enabled:
            raise _refused("permission denied - invalid PVE ticket")
        if method != "GET" and not self._is_csrf(headers.get("CSRFPreventionToken", ""), name):
            raise _refused("Permission denied - invalid csrf token")
        return Caller(name)

    def _by_token(self, users: Users, authorization: str) -> Caller:
        match = _TOKEN.fullmatch(authorization)
        user = users.users.get(match["user"]) if match else None
        token = user.tokens.get(match["token"]) if user and match else None
        if match is None or user is None or token is None or not user.enabled:
            raise _refused("Authentication failed!")
        expired = any(0 < moment < time.time() for moment in (user.expires, token.expires))
        caller = Caller(match["user"], match["token"])
        if expired or not users.has_token_secret(caller.identity, match["secret"]):
            raise _refused("Authentication failed!")
        return caller

    def _ticket_of(self, ticket: str) -> str | None:
        """The user whose valid ticket it is."""
        text, _, signature = ticket.partition("::")
        match = re.fullmatch(r"PVE:([^:]+):([0-9A-F]{8})", text)
        if match is None or not hmac.compare_digest(signature.encode(), self._sign(text).encode()):
            return None
        return match[1] if 0 <= time.time() - int(match[2], 16) + 300 < _TICKET_SECONDS + 300 else None

    def _is_csrf(self, token: str, user: str) -> bool:
        stamp, _, signature = token.partition(":")
        if not re.fullmatch(r"[0-9A-F]{8}", stamp) or time.time() - int(stamp, 16) > _CSRF_SECONDS:
            return False
        return hmac.compare_digest(signature.encode(), self._sign(f"{stamp}:{user}").encode())

    def _sign(self, text: str) -> str:
        return base64.b64encode(hmac.digest(self._key, text.encode(), hashlib.sha256)).decode()


def _refused(why: str) -> ApiError:
    return ApiError(401, why, body=False)
