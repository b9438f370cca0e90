"""The Proxmox VE API through proxmoxer: one login a run, TLS that is really checked, tasks waited for, errors for people.

proxmoxer and requests are imported on first use: a run that changes nothing doesn't pay for them.
"""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from host.errors import HomelabError
from settings import Host

if TYPE_CHECKING:
    from proxmoxer.core import ProxmoxResource, ResourceException

# A read is asked again when the proxy in front of the node failed (pveproxy's own codes: connection, TLS, reading).
RETRIED = (595, 596, 597, 599)
READ_TRIES = 3
# Between two looks at a task: it tells nobody when it ends.
POLL_SECONDS = (0.1, 1.0)
# Of a failed task's log, how much an error shows.
TAIL_LINES = 12

_PERMISSION = re.compile(r"Permission check failed(?: \((?P<path>/[^,]*), (?P<privileges>[^)]*)\))?")
_NOT_THERE = re.compile(r"Configuration file '.*' does not exist|pci ID '.*' does not exist|^mapping '.*' not found")


class ApiError(HomelabError):
    """The API refused a request, or a task failed. ``status`` is HTTP's (0: no answer), ``reason`` the node's own words."""

    def __init__(self, wanted: str, found: str, why: str, next_step: str, status: int, reason: str) -> None:
        super().__init__(wanted, found, why, next_step)
        self.status, self.reason = status, reason


class NotThereError(ApiError):
    """What was asked for doesn't exist: a guest's configuration, a mapping."""


class ChangedMeanwhileError(ApiError):
    """The digest of what was read is no longer the one of what is there."""


class UnansweredError(ApiError):
    """No answer, or none from the node: a change may have been carried out or not."""


class Api:
    """One host's API.

    :param host: the settings; ``host.api`` is set.
    :param node: the node's name in its cluster.
    """

    def __init__(self, host: Host, node: str) -> None:
        self.node = node
        self._host = host
        self._resource = _connected(host)

    def get(self, path: str, wanted: str, **parameters: Any) -> Any:
        """GET below /api2/json. ``wanted`` says for an error what was asked for. Raises ApiError."""
        return self._ask("get", path, wanted, parameters)

    def post(self, path: str, wanted: str, **parameters: Any) -> Any:
        """POST; a task's UPID where one was started. Raises ApiError."""
        return self._ask("post", path, wanted, parameters)

    def put(self, path: str, wanted: str, **parameters: Any) -> Any:
        """PUT. Raises ApiError."""
        return self._ask("put", path, wanted, parameters)

    def delete(self, path: str, wanted: str, **parameters: Any) -> Any:
        """DELETE. Raises ApiError."""
        return self._ask("delete", path, wanted, parameters)

    def _ask(self, verb: str, path: str, wanted: str, parameters: dict[str, Any]) -> Any:
        import requests
        from proxmoxer.core import ResourceException

        # The API knows 0 and 1; a Python True would be refused.
        sent = {name: int(value) if isinstance(value, bool) else value for name, value in parameters.items()}
        try:
            return getattr(self._resource(path), verb)(**sent)
        except ResourceException as error:
            _refused(self._host, wanted, error)
        except requests.exceptions.RequestException as error:
            raise _no_answer(self._host, wanted, error) from error

    def task(self, upid: str, wanted: str, seconds: float, say: Callable[[str], None]) -> None:
        """Waits for a task; each new line of its log goes to ``say``.

        :param seconds: how long to wait at most.
        :raises ApiError: it failed, or still runs; the end of its log is in the text.
        """
        path = f"nodes/{upid.split(':')[1]}/tasks/{upid}"
        deadline = time.monotonic() + seconds
        shown, pause = 0, POLL_SECONDS[0]
        while True:
            status = self.get(f"{path}/status", wanted)
            shown += self._show(path, wanted, shown, say)
            if status["status"] == "stopped":
                break
            if time.monotonic() > deadline:
                raise _task_failed(wanted, upid, f"it still runs after {seconds:.0f} seconds", self._tail(path, wanted))
            time.sleep(pause)
            pause = min(pause * 2, POLL_SECONDS[1])
        if status["exitstatus"] != "OK" and not status["exitstatus"].startswith("WARNINGS"):
            raise _task_failed(wanted, upid, status["exitstatus"], self._tail(path, wanted))

    def _show(self, path: str, wanted: str, start: int, say: Callable[[str], None]) -> int:
        lines = [line["t"] for line in self.get(f"{path}/log", wanted, start=start, limit=500) if "t" in line]
        # A task that has said nothing yet answers `no content`; the last line only repeats the status.
        lines = [line for line in lines if line != "no content"]
        for line in lines:
            if not line.startswith("TASK "):
                say(line)
        return len(lines)

    def _tail(self, path: str, wanted: str) -> str:
        lines = [line.get("t", "") for line in self.get(f"{path}/log", wanted, start=0, limit=5000)]
        return "\n        ".join(line for line in lines[-TAIL_LINES:] if line and line != "no content")


def identity(host: Host) -> str:
    """Who we are to the API: ``homelab@pve!pulumi`` or ``root@pam``."""
    assert host.api is not None
    return host.api.token or host.api.user or ""


# -- the connection ------------------------------------------------------------------------------------------------
_LOCK = threading.Lock()


def _connected(host: Host) -> ProxmoxResource:
    """The connection, made once in this process: the engine runs all resources of a program in one."""
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
def _connection(_settings: str, secret: str | None, key: _Key) -> ProxmoxResource:
    import requests
    from proxmoxer.backends.https import JsonSerializer, ProxmoxHTTPApiTokenAuth, ProxmoxHttpSession
    from proxmoxer.core import ProxmoxResource

    host, api = key.host, key.host.api
    assert api is not None
    # Not proxmoxer.ProxmoxAPI: that logs in outside of its session, where no fingerprint could be compared.
    session = ProxmoxHttpSession()
    session.mount("https://", _adapter(api.fingerprint))
    session.headers["accept"] = JsonSerializer().get_accept_types()
    # Not from the environment: a proxy is not on the way to a host of one's own network, and .netrc knows nothing of it.
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
        raise _no_answer(key.host, f"to log in to {base} as {api.user}", error) from error
    return ProxmoxResource(base_url=base, session=session, serializer=JsonSerializer())


def _adapter(fingerprint: str | None) -> Any:
    """Retries reads that didn't get through; with a fingerprint, accepts that certificate and no other."""
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, **kwargs, assert_fingerprint=fingerprint)

    return Adapter(
        max_retries=Retry(
            total=READ_TRIES - 1,
            status_forcelist=RETRIED,
            allowed_methods=("GET",),
            backoff_factor=0.3,
            raise_on_status=False,
        )
    )


def _ticket(session: Any, base: str, user: str, password: str, about: dict[str, Any]) -> Any:
    """Logs in with a password, through the session."""
    from proxmoxer.backends.https import ProxmoxHTTPAuth

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
    return ApiError(
        f"to log in to {base} as {user}",
        f"{status} {reason}",
        "without it nothing can be asked of Proxmox VE",
        "correct api.user (with its realm, such as root@pam) and api.password; a user with a second factor needs a token instead "
        "(`pveum user token add USER pulumi`)",
        status,
        reason,
    )


def _no_answer(host: Host, wanted: str, error: Exception) -> ApiError:
    import requests

    api = host.api
    assert api is not None
    text = str(error)
    if isinstance(error, requests.exceptions.SSLError):
        found = re.search(r'got "([0-9a-f]+)"', text)
        seen = f"the certificate's fingerprint is {_colons(found[1])}" if found else text
        return ApiError(
            f"{wanted}, from the host whose certificate is the one in api.{'fingerprint' if api.fingerprint else 'caFile'}",
            f"{host.address}:{api.port}: {seen}",
            "whoever answers there would be given the credentials",
            "compare with `pvenode cert info` on the host's own console; then correct api.fingerprint, or api.caFile (a copy of the "
            "host's /etc/pve/pve-root-ca.pem)",
            0,
            text,
        )
    return UnansweredError(
        wanted,
        f"no answer from https://{host.address}:{api.port}: {type(error).__name__}: {text}",
        "whether a change was carried out can't be told from here",
        "see whether pveproxy runs on the host (`systemctl status pveproxy`) and the port is open; then run `pulumi up` again: it "
        "goes on from what is there",
        0,
        text,
    )


def _colons(digits: str) -> str:
    return ":".join(digits[i : i + 2] for i in range(0, len(digits), 2)).upper()


def _refused(host: Host, wanted: str, error: ResourceException) -> NoReturn:
    """Raises the error for people."""
    status, reason = int(error.status_code), str(error.content or "").strip()
    errors = error.errors if isinstance(error.errors, dict) else {}
    details = "; ".join(f"{name}: {str(text).strip()}" for name, text in errors.items())
    found = f"{status} {reason}" + (f" ({details})" if details else "")
    kind, why, step = _explained(host, status, reason)
    raise kind(wanted, found, why, step, status, reason) from error


def _explained(host: Host, status: int, reason: str) -> tuple[type[ApiError], str, str]:
    """Kind of error, why it matters, what to do next. The texts are a node's own (recorded exchanges)."""
    who = identity(host)
    if status == 401:
        return (
            ApiError,
            f"the node doesn't know {who} by these credentials",
            "correct api.token and api.tokenSecret (`pveum user token list USER`), or api.user and api.password",
        )
    if match := _PERMISSION.search(reason):
        option = "--tokens" if "!" in who else "--users"
        granted = (
            f"grant it: a role with {match['privileges']} on {match['path']} (`pveum role add`, `pveum acl modify {match['path']} "
            f"{option} '{who}' --roles ROLE`)"
            if match["path"]
            else f"grant {who} the privileges that the README lists"
        )
        return ApiError, f"{who} lacks the right, and nothing was changed by this request", granted
    if "only root can set" in reason or "only root@pam can" in reason.replace("\\", ""):
        return (
            ApiError,
            f"Proxmox VE lets nobody but root@pam with a password do that, no token either; we are {who}",
            "use the card through its mapping (leave `byAddress` and `romfile` out), or give api.user: root@pam and api.password",
        )
    if _NOT_THERE.search(reason):
        return NotThereError, "it is the one that the stack's configuration names", "correct its id, or bring it back"
    if "checksum mismatch" in reason or "detected modified configuration" in reason:
        return (
            ChangedMeanwhileError,
            "somebody else changed it between reading and writing; nothing was overwritten",
            "see who else configures it (another pulumi, the web interface), then run `pulumi up` again",
        )
    if status in RETRIED or "hostname lookup" in reason:
        return (
            UnansweredError if status in RETRIED else ApiError,
            "the node that the guest lives on doesn't answer to its cluster"
            if status in RETRIED
            else "no node of that name is known",
            "bring the node back (`pvecm status`), then run `pulumi up` again: it goes on from what is there"
            if status in RETRIED
            else "correct hosts.<name>.node: the name that `hostname` prints on the host",
        )
    if "locked" in reason or "can't lock file" in reason or "got timeout" in reason:
        return (
            ApiError,
            "another task works on it: a backup, a clone, a migration",
            "wait for it (`pvesh get /cluster/tasks`); a lock that a dead task left goes with `qm unlock ID`. Then run `pulumi up` again",
        )
    if "no quorum" in reason:
        return ApiError, "/etc/pve can't be written", "bring the cluster's other nodes back (`pvecm status`)"
    if status == 501:
        return (
            ApiError,
            "this Proxmox VE doesn't know the operation",
            "PCI mappings need Proxmox VE 8 or later: upgrade",
        )
    return (
        ApiError,
        "the node refused it; nothing was changed by this request",
        "correct what it names, then run `pulumi up` again",
    )


def _task_failed(wanted: str, upid: str, status: str, tail: str) -> ApiError:
    return ApiError(
        wanted,
        f"the task ended with: {status}" + (f"\n        its log: {tail}" if tail else ""),
        "what it was to do is not done",
        f"mend what it names, then run `pulumi up` again; all of its log: `pvenode task log {upid}`",
        500,
        status,
    )
