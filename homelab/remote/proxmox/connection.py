"""The connection to one host's API: one login a run, TLS that is really checked, requests that have a time limit.

proxmoxer and requests are imported on first use: a run that changes nothing doesn't pay for them.
"""

from __future__ import annotations

import functools
import re
import shlex
import ssl
import threading
import time
from email.utils import parsedate_to_datetime
from typing import Any

import requests
from proxmoxer.backends.https import JsonSerializer, ProxmoxHTTPApiTokenAuth, ProxmoxHTTPAuth, ProxmoxHttpSession
from proxmoxer.core import ProxmoxResource
from requests.adapters import HTTPAdapter
from urllib3.util.ssl_ import create_urllib3_context

from homelab.remote.proxmox.errors import ApiError, UnansweredError, explained, plain
from homelab.settings import Host

# What shows the fingerprint of the certificate that the API shows. `pvenode cert info` lists the authority's first.
FINGERPRINT_COMMAND = "openssl x509 -in /etc/pve/local/pve-ssl.pem -noout -fingerprint -sha256"
# Of a TLS connection that broke, in Python's words; a certificate was not even seen. pveproxy breaks them off when it
# restarts.
_BROKEN = re.compile(r"EOF occurred|UNEXPECTED_EOF|Connection reset|zero return|timed out", re.IGNORECASE)


class Connection:
    """`resource`: proxmoxer's; `node_time`: what the node's clock says now, as far as an answer has told it."""

    def __init__(self, resource: ProxmoxResource, session: Any) -> None:
        self.resource = resource
        self._ahead = 0.0
        session.hooks["response"].append(self._noted)

    def _noted(self, response: Any, *_: Any, **__: Any) -> None:
        try:
            self._ahead = parsedate_to_datetime(response.headers["Date"]).timestamp() - time.time()
        except (KeyError, ValueError):
            self._ahead = 0.0

    @property
    def node_time(self) -> float:
        """Seconds since 1970, to about a second."""
        return time.time() + self._ahead


_LOCK = threading.Lock()


def connected(host: Host) -> Connection:
    """The connection, made once in this process: the engine runs all resources of a program in one.

    :raises ApiError: there is none.
    """
    assert host.api is not None, "the settings are checked for it"
    secret = host.api.token_secret or host.api.password
    with _LOCK:
        settings = host.model_dump_json(include={"address", "api", "timeouts"})
        return _connection(settings, secret and secret.get_secret_value(), _Key(host))


class _Key:
    """Carries the settings past the cache, which compares the values beside it."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key)

    def __hash__(self) -> int:
        return 0


@functools.cache
def _connection(_settings: str, secret: str | None, key: _Key) -> Connection:
    host, api = key.host, key.host.api
    assert api is not None
    # Not proxmoxer.ProxmoxAPI: that logs in outside of its session, where no fingerprint could be compared.
    session = ProxmoxHttpSession()
    session.mount("https://", _adapter(api.fingerprint))
    session.headers["accept"] = JsonSerializer().get_accept_types()
    # Not from the environment: a proxy is not on the way to a host of one's own network, and .netrc knows nothing of
    # it.
    session.trust_env = False
    verify: str | bool = str(api.ca_path) if api.ca_path else api.fingerprint is None
    about: dict[str, Any] = {"verify_ssl": verify, "timeout": (host.timeouts.connect, host.timeouts.api)}
    shown = f"[{host.address}]" if ":" in host.address else host.address
    base = f"https://{shown}:{api.port}/api2/json"
    try:
        if api.token:
            user, _, name = api.token.partition("!")
            session.auth = ProxmoxHTTPApiTokenAuth(user, name, secret, **about)
        else:
            session.auth = _ticket(session, base, api.user or "", secret or "", about)
    except requests.exceptions.RequestException as error:
        raise no_answer(host, f"to log in to {base} as {api.user}", error) from error
    return Connection(ProxmoxResource(base_url=base, session=session, serializer=JsonSerializer()), session)


def _adapter(fingerprint: str | None) -> Any:
    """With a fingerprint, accepts that certificate and no other. What is sent again is Api's to say."""

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            if fingerprint:
                # urllib3's own would read every authority that this machine trusts, of which none is asked: 27 ms a
                # run.
                kwargs["ssl_context"] = create_urllib3_context(cert_reqs=ssl.CERT_NONE)
            super().init_poolmanager(*args, **kwargs, assert_fingerprint=fingerprint)

    return Adapter(max_retries=0)


def _ticket(session: Any, base: str, user: str, password: str, about: dict[str, Any]) -> Any:
    """Logs in with a password, through the session."""

    class TicketAuth(ProxmoxHTTPAuth):  # type: ignore[misc]
        pve_auth_ticket: str

        def _get_new_tokens(
            self, password: str | None = None, otp: str | None = None, otptype: str | None = None
        ) -> None:
            # A ticket, which lives for two hours, is renewed by itself.
            answer = session.request(
                "POST",
                f"{base}/access/ticket",
                data={"username": user, "password": password or self.pve_auth_ticket},
                auth=_NoAuth(),
                verify=about["verify_ssl"],
                timeout=about["timeout"],
            )
            if answer.status_code != 200:
                raise _login_refused(base, user, answer.status_code, answer.reason)
            data = answer.json()["data"]
            if data.get("NeedTFA"):
                raise _login_refused(base, user, 401, "a second factor is asked for")
            self.birth_time = time.monotonic()
            self.pve_auth_ticket, self.csrf_prevention_token = data["ticket"], data["CSRFPreventionToken"]

    return TicketAuth(user, password, base_url=base, **about)


class _NoAuth:
    """The request that logs in carries no credentials of its own."""

    def __call__(self, request: Any) -> Any:
        return request

    def get_cookies(self) -> dict[str, str]:
        return {}


# -- errors --------------------------------------------------------------------------------------------------------
def _login_refused(base: str, user: str, status: int, reason: str) -> ApiError:
    wanted = f"to log in to {base} as {user}"
    if status != 401:  # a daemon that is being restarted, too
        return explained(wanted, f"{status} {plain(reason)}", user, status, plain(reason))
    return ApiError(
        wanted=wanted,
        found=f"{status} {plain(reason)}",
        why="without it nothing can be asked of Proxmox VE",
        next="correct api.user (with its realm, such as root@pam) and api.password; a user with a second factor "
        "needs a token instead "
        f"(`pveum user token add {shlex.quote(user)} pulumi --privsep 0`)",
        status=status,
        reason=reason,
    )


def no_answer(host: Host, wanted: str, error: Exception, *, reads: bool = False) -> ApiError:
    """The error for a request that got no answer: no connection, another certificate, or too late.

    :param reads: it changes nothing.
    """
    api = host.api
    assert api is not None
    text = plain(str(error))
    if isinstance(error, requests.exceptions.SSLError) and not _BROKEN.search(text):
        return _stranger(host, wanted, text)
    unsent = isinstance(error, requests.exceptions.ConnectTimeout) or "NewConnectionError" in repr(error)
    made = UnansweredError(
        wanted=wanted,
        found=f"no answer from https://{host.address}:{api.port}: {type(error).__name__}: {text}",
        why="it could not be read; nothing was changed"
        if reads
        else "nothing was asked of the node"
        if unsent
        else "whether a change was carried out can't be told from here",
        next="see whether pveproxy runs on the host (`systemctl status pveproxy`) and the port is open; then run "
        "`pulumi up` again: it "
        "continues from what is there",
        status=0,
        reason=text,
    )
    made.sent = not unsent
    return made


def _stranger(host: Host, wanted: str, text: str) -> ApiError:
    """Another certificate than the one that was to be there."""
    api = host.api
    assert api is not None
    found = re.search(r'got "([0-9a-f]+)"', text)
    seen = f"the certificate's fingerprint is {colons(found[1])}" if found else text
    return ApiError(
        wanted=f"{wanted}, from the host whose certificate is the one in "
        f"api.{'fingerprint' if api.fingerprint else 'caFile'}",
        found=f"{host.address}:{api.port}: {seen}",
        why="the program would send the credentials to whatever answers there",
        next=f"compare with `{FINGERPRINT_COMMAND}` on the host's own console (pveproxy-ssl.pem instead, where "
        "there is one; the first "
        "certificate of `pvenode cert info` is the authority's, whose fingerprint never fits); then correct "
        "api.fingerprint, or "
        "api.caFile (a copy of the host's /etc/pve/pve-root-ca.pem)",
        status=0,
        reason=text,
    )


def colons(digits: str) -> str:
    """`AB:CD` for `abcd`, as openssl shows a fingerprint."""
    return ":".join(digits[i : i + 2] for i in range(0, len(digits), 2)).upper()
