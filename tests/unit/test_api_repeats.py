"""Which requests to a host's API are sent again, and for how long."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
from proxmoxer.core import ResourceException

from homelab.errors import ApiError, LockHeldError, NoQuorumError, UnansweredError
from homelab.remote.proxmox.api import LOCK_SECONDS, OUTAGE_SECONDS, QUORUM_SECONDS, RETRY_SECONDS, Api
from tests.rows import rows
from tests.unit.hosts import settings

HOST = settings({})
TEXTS: dict[str, Any] = {"wanted": "", "found": "", "why": "", "next": "", "status": 0, "reason": ""}


def unanswered(*, sent: bool) -> ApiError:
    error = UnansweredError(**TEXTS)
    error.sent = sent
    return error


@rows(
    ("verb", "error", "seconds"),
    [
        ("get", unanswered(sent=True), OUTAGE_SECONDS),
        ("get", unanswered(sent=False), OUTAGE_SECONDS),
        ("post", unanswered(sent=False), OUTAGE_SECONDS),
        ("post", unanswered(sent=True), None),
        ("put", unanswered(sent=True), None),
        ("delete", unanswered(sent=True), None),
        ("post", LockHeldError(**TEXTS), LOCK_SECONDS),
        ("put", NoQuorumError(**TEXTS), QUORUM_SECONDS),
        ("get", ApiError(**TEXTS), None),
    ],
)
def test_a_request_is_sent_again_only_where_it_changes_nothing_twice(
    verb: str, error: ApiError, seconds: float | None
) -> None:
    """:param seconds: for how long; None: it is sent once."""

    class Failing(Api):
        """An API whose every request ends with this error, but for the list of nodes. `requests`: how many there were."""

        error: ApiError
        requests = 0

        def _request(self, _verb: str, path: str, *_: object) -> list[object]:
            if path == "nodes":
                return []
            self.requests += 1
            raise self.error

    class Passing:
        """Time that passes by being waited for."""

        def __init__(self) -> None:
            self.time = 0.0

        def monotonic(self) -> float:
            return self.time

        def sleep(self, seconds: float) -> None:
            self.time += seconds

    api = Failing(HOST, "pve", clock=(clock := Passing()))
    api.error = error
    with pytest.raises(type(error)):
        getattr(api, verb)("nodes/pve/version", "")
    if seconds is None:
        assert (api.requests, clock.time) == (1, 0.0)
    else:
        assert seconds < clock.time <= seconds + 2 * RETRY_SECONDS[1]


def test_a_refusal_shows_no_secret_of_the_request() -> None:
    refused = ResourceException(400, "Bad", "hunter22, 4444", {"cipassword": "hunter22 is short"})
    api = Api(HOST, "pve")
    api._connection = Mock(**{"resource.return_value.put.side_effect": refused})
    with pytest.raises(ApiError) as error:
        api.put("nodes/pve/qemu/103/config", "", cipassword="hunter22", cores="4444")
    assert error.value.found == "400 ***, 4444 (cipassword: *** is short)" and "hunter22" not in error.value.reason
