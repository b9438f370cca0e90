"""A VM's power: when one whose guest hears no request is ended by force, and which start counts though it was refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from homelab.errors import HomelabError
from homelab.remote.proxmox.errors import ApiError, TaskFailedError, UnansweredError
from homelab.remote.proxmox.machine import Machine
from homelab.shapes import ShutdownInputs

FORCE = {"forceStop": 1}


@pytest.mark.parametrize(
    ("otherwise", "by_ha", "requests"),
    [
        ("stop", False, [{"timeout": 60}, {"timeout": 60}, {"timeout": 30} | FORCE]),
        ("fail", False, [{"timeout": 60}, {"timeout": 60}, {"timeout": 30}]),
        ("stop", True, [{"timeout": 150} | FORCE]),
        ("fail", True, [{"timeout": 150}]),
    ],
)
def test_a_guest_has_all_of_its_time_before_the_vm_is_ended_by_force(
    monkeypatch: pytest.MonkeyPatch, otherwise: Any, by_ha: bool, requests: list[dict[str, int]]
) -> None:
    now, sent = [0.0], list[dict[str, int]]()

    def task(_machine: Machine, _verb: str, _below: str, _wanted: str, *_: object, **options: int) -> list[str]:
        sent.append(options)
        now[0] += options["timeout"]
        if "forceStop" not in options:
            raise TaskFailedError(wanted="", found="timeout", why="", next="", status=500, reason="timeout")
        return []

    monkeypatch.setattr(Machine, "_task", task)
    monkeypatch.setattr(Machine, "_ha", lambda _: {"managed": 1} if by_ha else {})
    monkeypatch.setattr(Machine, "running", lambda _: "forceStop" not in sent[-1])
    api = cast(Any, SimpleNamespace(node="pve", clock=SimpleNamespace(now=lambda: now[0])))
    vm = Machine(api, 103, "sandbox", memory=cast(Any, None))
    shutdown = ShutdownInputs(timeout=150, otherwise=otherwise)
    if otherwise == "stop":
        vm._shut_down(shutdown)
    else:
        with pytest.raises(HomelabError, match="it is still on"):
            vm._shut_down(shutdown)
    assert sent == requests


@pytest.mark.parametrize(
    ("kind", "reason", "runs", "counts"),
    [
        (ApiError, "VM 103 already running", True, True),
        (ApiError, "no", True, False),
        (UnansweredError, "no answer", True, True),
        (UnansweredError, "no answer", False, False),
    ],
)
def test_a_start_that_was_refused_or_not_answered_counts_only_where_the_vm_runs(
    kind: type[ApiError], reason: str, runs: bool, counts: bool
) -> None:
    def task(*_: object, **__: object) -> list[str]:
        raise kind(wanted="", found="", why="", next="", status=500, reason=reason)

    vm = object.__new__(Machine)
    vm.__dict__.update(
        label="VM 103", _api=SimpleNamespace(node_time=1), _start_announced=False, _has_asked_ha=False, starts=0, say=lambda text: None,
        _is_under_ha=lambda wanted: False, _runs_again=lambda: None, _task=task, _starts_to_run=lambda seconds, **_: runs,
    )  # fmt: skip
    if counts:
        vm.start()
    else:
        with pytest.raises(kind):
            vm.start()
    assert vm.starts == counts
