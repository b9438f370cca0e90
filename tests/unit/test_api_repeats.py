"""Which requests to a host's API are sent again, and for how long."""

from __future__ import annotations

from typing import Any

import pytest
from proxmoxer.core import ResourceException

from homelab.properties import strings
from homelab.remote.proxmox.api import LOCK_SECONDS, OUTAGE_SECONDS, QUORUM_SECONDS, RETRY_SECONDS, Api, Clock
from homelab.remote.proxmox.errors import ApiError, ChangedMeanwhileError, LockHeldError, NoQuorumError, UnansweredError
from tests.unit.hosts import settings

HOST = settings({})
TEXTS: dict[str, Any] = {"wanted": "", "found": "", "why": "", "next": "", "status": 0, "reason": ""}


class Passing(Clock):
    """Time that passes by being waited for."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


class Failing(Api):
    """An API whose every request ends with this error, but for the list of nodes. `requests`: how many there were."""

    error: ApiError
    requests = 0

    def _request(self, _verb: str, path: str, *_: object) -> list[object]:
        if path == "nodes":
            return []
        self.requests += 1
        raise self.error


def unanswered(*, sent: bool) -> ApiError:
    error = UnansweredError(**TEXTS)
    error.sent = sent
    return error


@pytest.mark.parametrize(
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
    api = Failing(HOST, "pve", clock=(clock := Passing()))
    api.error = error
    with pytest.raises(type(error)):
        getattr(api, verb)("nodes/pve/version", "")
    if seconds is None:
        assert (api.requests, clock.time) == (1, 0.0)
    else:
        assert seconds < clock.time <= seconds + 2 * RETRY_SECONDS[1]


class Lossy(Api):
    """An API that loses the answer of the first POST. `listed`: the node's tasks; `posts`: how many there were."""

    listed: list[dict[str, Any]]
    posts = 0

    def _request(self, verb: str, path: str, _wanted: str, parameters: Any) -> Any:
        if verb == "post":
            self.posts += 1
            if self.posts == 1:
                raise unanswered(sent=True)
            return "UPID:pve:2:2:2:qmstop:103:root@pam:"
        if path.endswith("/tasks"):
            assert parameters == {"source": "all", "vmid": "103"}
            return self.listed
        return {"status": "stopped", "exitstatus": "OK"} if path.endswith("/status") else []


@pytest.mark.parametrize(
    ("other", "is_followed", "posts"),
    [
        ({}, False, 1),
        ({}, True, 2),
        ({"starttime": -3600}, False, 2),
        ({"user": "ann@pve"}, False, 2),
        ({"type": "qmreboot"}, False, 2),
    ],
    ids=["this request's", "an earlier request's", "older", "another user's", "of another kind"],
)
def test_a_task_is_taken_for_the_one_whose_answer_was_lost_only_if_it_can_be_no_other(
    other: dict[str, Any], is_followed: bool, posts: int
) -> None:
    """The request is sent again, whatever else of its kind the node did."""
    api = Lossy(HOST, "pve", clock=Passing())
    task = {"upid": "UPID:pve:1:1:1:qmstop:103:root@pam:", "type": "qmstop", "user": "root@pam", **other}
    api.listed = [task | {"starttime": int(api._connection.node_time) + other.get("starttime", 60)}]
    if is_followed:
        api._followed_upids.add(task["upid"])
    api.carry_out("post", "nodes/pve/qemu/103/status/stop", "off", 60, print, kinds=("qmstop",))
    assert api.posts == posts


class Changing(Api):
    """An API that loses the answer of the first change. `digest`: of the configuration by now, None: it can't be read;
    `second`: what the second change ends with; `puts`: how many there were.
    """

    digest: str | None
    second: ApiError
    puts = 0

    def _request(self, verb: str, *_: object) -> dict[str, str]:
        if verb == "get" and self.digest is None:
            raise unanswered(sent=False)
        if verb == "get":
            return {"digest": str(self.digest)}
        self.puts += 1
        raise unanswered(sent=True) if self.puts == 1 else self.second


@pytest.mark.parametrize(
    ("digest", "second", "puts"),
    [
        ("before", unanswered(sent=False), 2),
        ("before", ChangedMeanwhileError(**TEXTS), 2),
        ("after", unanswered(sent=True), 1),
        (None, unanswered(sent=True), 1),
    ],
    ids=["the node is off by then", "the first waited for a lock until then", "it was carried out", "it can't be read"],
)
def test_a_change_whose_answer_was_lost_is_sent_again_only_while_the_digest_is_the_old_one(
    digest: str | None, second: ApiError, puts: int
) -> None:
    """Whatever comes of that, the first may have been carried out."""
    api = Changing(HOST, "pve", clock=Passing())
    api.digest, api.second = digest, second
    with pytest.raises(UnansweredError) as lost:
        api.put("nodes/pve/qemu/103/config", "", digest="before", cores="4")
    assert lost.value.sent and api.puts >= puts


def test_a_task_that_can_t_be_looked_for_may_have_been_started() -> None:
    api = Changing(HOST, "pve", clock=Passing())
    api.digest = None
    with pytest.raises(UnansweredError) as lost:
        api.carry_out("post", "nodes/pve/qemu/103/status/stop", "off", 60, print, kinds=("qmstop",))
    assert lost.value.sent and api.puts == 1


def test_a_refusal_shows_no_secret_of_the_request() -> None:
    refused = ResourceException(400, "Bad", "hunter22, 4444", {"cipassword": "hunter22 is short"})
    parameters = {"cipassword": "hunter22", "cores": "4444"}
    error = Api(HOST, "pve")._error_of_refusal("put", "nodes/pve/qemu/103/config", "", parameters, refused)
    assert error.found == "400 ***, 4444 (cipassword: *** is short)" and "hunter22" not in error.reason


def test_options_are_read_as_text_without_the_digest() -> None:
    assert strings({"digest": "1a", "cores": 2, "name": "a"}) == {"cores": "2", "name": "a"}
