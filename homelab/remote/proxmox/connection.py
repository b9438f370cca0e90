"""The connection to a host's API: one login in a run, the certificate checked, requests with a time limit.

It is imported on first use (homelab/later.py): a run that changes nothing doesn't pay for proxmoxer and requests.
"""

from __future__ import annotations

import json
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
from homelab.settings.access import ApiAccess

# Prints the fingerprint of the API's certificate; `pvenode cert info` lists the authority's first.
FINGERPRINT_COMMAND = "openssl x509 -in /etc/pve/local/pve-ssl.pem -noout -fingerprint -sha256"
# Python's errors of a TLS connection that broke before a certificate was seen, as pveproxy's do when it restarts.
_CONNECTION_BROKEN = re.compile(r"EOF occurred|UNEXPECTED_EOF|Connection reset|zero return|timed out", re.IGNORECASE)


class Connection:
    """An API's connection. `resource`: proxmoxer's; `node_time`: by the node's clock, known from the last answer."""

    def __init__(self, resource: ProxmoxResource, session: Any) -> None:
        self.resource = resource
        self._clock_offset = 0.0
        session.hooks["response"].append(self._note_clock)

    def _note_clock(self, response: Any, *_: Any, **__: Any) -> None:
        try:
            self._clock_offset = parsedate_to_datetime(response.headers["Date"]).timestamp() - time.time()
        except (KeyError, ValueError):
            self._clock_offset = 0.0

    @property
    def node_time(self) -> float:
        """The time by the node's clock, in seconds since 1970, to about a second."""
        return time.time() + self._clock_offset


class Serializer(JsonSerializer):  # type: ignore[misc]
    """Of an answer that isn't Proxmox VE's, such as the page of something that stands before it, proxmoxer makes a
    mapping that looks like one."""

    def loads(self, response: Any) -> Any:
        try:
            return json.loads(response.content)["data"]
        except (ValueError, LookupError, TypeError):
            begin = response.content[:200].decode(errors="replace")
            # Half an answer of Proxmox VE's may have a ticket in it.
            page = f"; it begins: {begin!r}" if begin.startswith("<") else ""
            raise requests.exceptions.InvalidJSONError(f"it isn't Proxmox VE's{page}") from None

    def loads_errors(self, response: Any) -> Any:
        try:
            return json.loads(response.content).get("errors")
        except (ValueError, AttributeError):
            return None


_LOCK = threading.Lock()
_CONNECTIONS: dict[tuple[str, str | None], Connection] = {}


def connected(host: Host) -> Connection:
    """The connection to a host's API, made once in this process, in which all resources of a program run.

    :raises ApiError: the API doesn't answer, shows another certificate, or refuses the login.
    """
    assert host.api is not None, "the settings are checked for it"
    secret = host.api.token_secret or host.api.password
    text = secret.get_secret_value() if secret else None
    with _LOCK:
        key = (host.model_dump_json(include={"address", "api", "timeouts"}), text)
        if key not in _CONNECTIONS:
            _CONNECTIONS[key] = _connection(host, host.api, text)
        return _CONNECTIONS[key]


def _connection(host: Host, api: ApiAccess, secret: str | None) -> Connection:
    # Not proxmoxer.ProxmoxAPI: that logs in outside of its session, where no fingerprint could be compared.
    session = ProxmoxHttpSession()
    session.mount("https://", _adapter(api))
    session.headers["accept"] = Serializer().get_accept_types()
    # Ignores the environment's proxy, which a host of the same network isn't behind, and .netrc.
    session.trust_env = False
    session.max_redirects = 0  # the API has none, and the credentials are for it alone
    verify: str | bool = str(api.ca_path) if api.ca_path else api.fingerprint is None
    auth_options: dict[str, Any] = {"verify_ssl": verify, "timeout": (host.timeouts.connect, host.timeouts.api)}
    address = f"[{host.address}]" if ":" in host.address else host.address
    base = f"https://{address}:{api.port}/api2/json"
    try:
        if api.token:
            user, _, name = api.token.partition("!")
            session.auth = ProxmoxHTTPApiTokenAuth(user, name, secret, **auth_options)
        else:
            session.auth = _ticket(session, base, api.user or "", secret or "", auth_options)
    except requests.exceptions.RequestException as error:
        raise no_answer(host, f"to log in to {base} as {api.user}", error) from error
    return Connection(ProxmoxResource(base_url=base, session=session, serializer=Serializer()), session)


def _adapter(api: ApiAccess) -> Any:
    """An adapter for HTTPS that with a fingerprint accepts only that certificate, and that repeats no request: `Api`
    does.
    """

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            if not api.public_ca:
                # urllib3's own would read every authority that this machine trusts, of which none is asked: 27 ms a
                # run. From Python 3.13 on it would also take none that doesn't say what its key is for, as no node's
                # does that was made before pve-cluster 9.1.2.
                context = create_urllib3_context(cert_reqs=ssl.CERT_NONE if api.fingerprint else ssl.CERT_REQUIRED)
                context.verify_flags &= ~ssl.VERIFY_X509_STRICT
                kwargs["ssl_context"] = context
            super().init_poolmanager(*args, **kwargs, assert_fingerprint=api.fingerprint)

    return Adapter(max_retries=0)


def _ticket(session: Any, base: str, user: str, password: str, auth_options: dict[str, Any]) -> Any:
    """The authentication by a ticket, which is asked for with the password, through the session."""

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
                verify=auth_options["verify_ssl"],
                timeout=auth_options["timeout"],
            )
            if answer.status_code != 200:
                raise _login_refused(base, user, answer.status_code, answer.reason)
            data = Serializer().loads(answer)
            if data.get("NeedTFA"):
                raise _login_refused(base, user, 401, "a second factor is asked for")
            self.birth_time = time.monotonic()
            self.pve_auth_ticket, self.csrf_prevention_token = data["ticket"], data["CSRFPreventionToken"]

    return TicketAuth(user, password, base_url=base, **auth_options)


class _NoAuth:
    """The authentication of the request that logs in: none."""

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
        next="correct api.user (with its realm, such as root@pam) and api.password; a user with a second factor needs "
        f"a token instead (`pveum user token add {shlex.quote(user)} pulumi --privsep 0`)",
        status=status,
        reason=reason,
    )


_ITS_OWN = "set the host's address and api.port to the node's own (port 8006), not to a proxy's before it"


def no_answer(host: Host, wanted: str, error: Exception, *, reads: bool = False) -> ApiError:
    """The error for a request that got no answer: no connection, another certificate, or too late.

    :param reads: the request changes nothing.
    """
    api = host.api
    assert api is not None
    text = plain(str(error))
    if isinstance(error, requests.exceptions.SSLError) and not _CONNECTION_BROKEN.search(text):
        return _wrong_certificate(host, wanted, text)
    if isinstance(error, requests.exceptions.TooManyRedirects) and error.response is not None:
        return ApiError(
            wanted=wanted,
            found=f"https://{host.address}:{api.port} redirects to {plain(error.response.headers['Location'])}",
            why="Proxmox VE's API never does: something else answers there; the redirect was not followed",
            next=_ITS_OWN,
            status=error.response.status_code,
            reason=text,
        )
    is_unsent = isinstance(error, requests.exceptions.ConnectTimeout) or "NewConnectionError" in repr(error)
    unanswered = UnansweredError(
        wanted=wanted,
        found=f"no answer from https://{host.address}:{api.port}: {type(error).__name__}: {text}",
        why="it could not be read; nothing was changed"
        if reads
        else "nothing was asked of the node"
        if is_unsent
        else "it isn't known whether a change was carried out",
        next=_ITS_OWN
        if isinstance(error, requests.exceptions.InvalidJSONError)
        else "see whether pveproxy runs on the host (`systemctl status pveproxy`) and the port is open; then run "
        "`pulumi up` again: it continues from what is there",
        status=0,
        reason=text,
    )
    unanswered.sent = not is_unsent
    return unanswered


def _wrong_certificate(host: Host, wanted: str, text: str) -> ApiError:
    """The error for another certificate than the one of the settings."""
    api = host.api
    assert api is not None
    match = re.search(r'got "([0-9a-f]+)"', text)
    description = f"the certificate's fingerprint is {colons(match[1])}" if match else text
    if api.public_ca:
        return ApiError(
            wanted=f"{wanted}, from a host whose certificate is valid for its address, and of an authority that this "
            "machine trusts (api.publicCa)",
            found=f"{host.address}:{api.port}: {description}",
            why="the program would send the credentials to whatever answers there",
            next="see whether the host's address in the settings is a name in its certificate, and whether that has "
            "been renewed (the node's Certificates in its web interface); or set api.fingerprint in its place",
            status=0,
            reason=text,
        )
    return ApiError(
        wanted=f"{wanted}, from the host whose certificate is the one in "
        f"api.{'fingerprint' if api.fingerprint else 'caFile'}",
        found=f"{host.address}:{api.port}: {description}",
        why="the program would send the credentials to whatever answers there",
        next=f"compare with `{FINGERPRINT_COMMAND}` on the host's own console (pveproxy-ssl.pem instead, where there "
        "is one; the first certificate of `pvenode cert info` is the authority's, whose fingerprint never fits); then "
        "correct api.fingerprint, or api.caFile (a copy of the host's /etc/pve/pve-root-ca.pem)",
        status=0,
        reason=text,
    )


def colons(digits: str) -> str:
    """A fingerprint as openssl shows it: `AB:CD` for `abcd`."""
    return ":".join(digits[i : i + 2] for i in range(0, len(digits), 2)).upper()
