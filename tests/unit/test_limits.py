"""homelab/resources/limits.py: every resource has an end, from the settings."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from homelab.errors import HomelabError
from homelab.nvidia.settings import Nvidia
from homelab.resources import limits
from homelab.resources.base import HostInputs, NoOutputs
from homelab.resources.work import base
from remote_scripts.both.terms import HANDOVER_SECONDS
from tests.unit.hosts import settings
from tests.unit.test_guard import Acts


def test_a_script_takes_what_the_settings_give_it_and_nvidias_steps_what_they_wait_for() -> None:
    host = settings(timeouts={"step": 100})
    stack = Nvidia.model_validate({"timeouts": {"lock": 1, "download": 10, "install": 20}})
    assert limits.of_step(host) == 100
    assert limits.of_step(host, stack) == 191


def test_a_task_has_what_it_waits_for_on_top() -> None:
    host = settings(timeouts={"task": 1000, "reboot": 100, "rollback": 30})
    assert limits.of_task(host, {}) == 1230
    assert limits.of_task(host, {"shutdown": {"timeout": 5.0}}) == 1240
    assert limits.of_task(host, {"timeout": 7.0}) == 1244
    assert limits.of_task(host, {"shutdown": {"timeout": 5.0}, "vmid": 103}) == 1240 + 2 * HANDOVER_SECONDS
    assert limits.of_task(host, {"shutdown": {"timeout": 5.0}, "vmid": None}) == 1240
    assert limits.of_task(host, {"shutdown": object()}) == 1230


class Works(Acts):
    """Work that does as it is told."""

    def __init__(self, seconds: int) -> None:
        super().__init__([], hosts="{}")
        self._limit = seconds
        self.event = threading.Event()
        self.error: Exception | None = None

    def is_held_meanwhile(self, inputs: HostInputs) -> bool:
        return False

    def seconds(self, properties: Mapping[str, Any]) -> int:
        return self._limit or super().seconds(properties)

    def _hang(self) -> NoOutputs:
        if self.error is not None:
            raise self.error
        self.event.wait()
        return NoOutputs()

    def create(self, inputs: HostInputs) -> NoOutputs:
        return self._hang()

    def update(self, inputs: HostInputs, had: HostInputs, outputs: NoOutputs) -> NoOutputs:
        return self._hang()

    def read(self, inputs: HostInputs, outputs: NoOutputs) -> NoOutputs:
        return self._hang()

    def delete(self, inputs: HostInputs, outputs: NoOutputs) -> None:
        self._hang()


@pytest.mark.parametrize("verb", ["create", "update", "read", "delete"])
def test_work_that_hangs_is_given_up_with_a_sentence(verb: str) -> None:
    work, properties = Works(1), {"host": "pve", "vm": "sandbox"}
    calls: dict[str, Callable[[], object]] = {
        "create": lambda: work.created(properties),
        "update": lambda: work.updated(properties, properties),
        "read": lambda: work.refreshed(properties),
        "delete": lambda: work.deleted(properties),
    }
    with pytest.raises(HomelabError) as raised:
        calls[verb]()
    assert raised.value.wanted == f"sandbox: {verb} of ContainerVerification done within 1 s"
    work.event.set()


def test_what_ends_in_time_answers_and_fails_as_ever() -> None:
    work = Works(60)
    work.event.set()
    assert work.created({"host": "pve", "a": 1}) == ("pve", {"host": "pve", "a": 1})
    work.error = ValueError("its own")
    with pytest.raises(ValueError, match="its own"):
        work.created({"host": "pve"})


def test_a_host_that_is_no_longer_configured_has_the_usual_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Works(0).seconds({"host": "gone"}) == 10_800 + 1200 + 600
    own = settings(timeouts={"task": 7, "reboot": 1, "rollback": 30})
    monkeypatch.setattr(base, "load_host", lambda hosts, name: own)
    assert Works(0).seconds({"host": "pve"}) == 7 + 2 + 30
