"""A change that root makes on the host for the API's user: what doesn't answer there is known as such, and isn't taken for a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from homelab.errors import UnreachableError
from homelab.provider import api as provider_api
from homelab.remote import ssh
from homelab.remote.proxmox.api import Api
from homelab.remote.proxmox.errors import ApiError, UnansweredError
from tests.unit.hosts import settings

HOST = settings({}, api={"token": "homelab@pve!up", "tokenSecret": "b", "fingerprint": ":".join(["AB"] * 32)})
WANTED = "to give VM 103 its card"


def put_as_root(monkeypatch: pytest.MonkeyPatch, answer: str | UnreachableError) -> ApiError:
    """The error of a change, where root's session on the host gives this answer."""

    class Session:
        def run(self, _verb: str, script: str, _seconds: float) -> str:
            assert script.startswith(
                f"LC_ALL=C.UTF-8 timeout -k 5 {HOST.timeouts.api} pvesh set /nodes/pve/qemu/103/config"
            )
            if isinstance(answer, UnreachableError):
                raise answer
            return answer

    def connect(_host: Any) -> Any:
        return Session()

    def root(command: Sequence[str]) -> tuple[str, int]:
        return provider_api._as_root(HOST, command)

    monkeypatch.setattr(ssh, "Session", connect)
    with pytest.raises(ApiError) as raised:
        Api(HOST, "pve", root=root, patience=0).put("nodes/pve/qemu/103/config", WANTED, as_root=True, hostpci0="01:00")
    return raised.value


@pytest.mark.parametrize("status", [124, 137])
def test_a_pvesh_that_hangs_is_no_refusal(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    error = put_as_root(monkeypatch, f"update VM 103: -hostpci0 01:00\n\n{status}\n")
    assert isinstance(error, UnansweredError) and error.sent
    assert error.wanted == WANTED and f"has not ended within {HOST.timeouts.api} s" in error.found
    assert "isn't known" in error.why and "pve-cluster" in error.next


def test_a_session_that_is_lost_meanwhile_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    error = put_as_root(monkeypatch, UnreachableError(wanted="", found="it was lost", why="w", next="n"))
    assert isinstance(error, UnansweredError) and (error.wanted, error.found) == (WANTED, "it was lost")


def test_what_pvesh_refuses_is_said_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    error = put_as_root(monkeypatch, "invalid format - hostpci0\n\n255\n")
    assert not isinstance(error, UnansweredError) and "ends with 255: invalid format - hostpci0" in error.found
