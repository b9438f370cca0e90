"""homelab/resources/limits.py: every resource has an end, from the settings."""

from __future__ import annotations

import importlib
import threading
from typing import Any

import pytest
from pulumi.dynamic import CreateResult

from homelab.errors import HomelabError
from homelab.resources import limits
from homelab.resources.base import HostProvider
from homelab.settings import Host
from homelab.settings.nvidia import Nvidia
from tests.conftest import PROJECT
from tests.unit.hosts import settings


def test_a_script_takes_what_the_settings_give_it_and_nvidias_steps_what_they_wait_for() -> None:
    host = settings(timeouts={"script": 100})
    stack = Nvidia.model_validate({"timeouts": {"lock": 1, "download": 10, "install": 20}})
    assert limits.of_script(host) == 100
    assert limits.of_script(host, stack) == 191


def test_a_task_has_what_it_waits_for_on_top() -> None:
    host = settings(timeouts={"task": 1000, "reboot": 100, "rollback": 30})
    assert limits.of_task(host, {}) == 1230
    assert limits.of_task(host, {"shutdown": {"timeout": 5.0}}) == 1240
    assert limits.of_task(host, {"timeout": 7.0}) == 1244
    assert limits.of_task(host, {"shutdown": object()}) == 1230


class Probe(HostProvider):
    """A provider whose acts do as they are told."""

    def __init__(self, seconds: int) -> None:
        super().__init__()
        self._limit = seconds

    def host(self, props: dict[str, Any]) -> Host:
        if props.get("gone"):
            raise HomelabError(wanted="a", found="b", why="c", next="d")
        return settings(timeouts={"task": 7, "reboot": 1, "rollback": 30})

    def seconds(self, props: dict[str, Any]) -> int:
        return self._limit or super().seconds(props)

    def create(self, props: dict[str, Any]) -> CreateResult:
        if "error" in props:
            raise props["error"]
        if "event" in props:
            props["event"].wait()
        return CreateResult("id", props)

    def delete(self, _id: str, props: dict[str, Any]) -> None:
        props["event"].wait()


def test_an_act_that_hangs_is_given_up_with_a_sentence() -> None:
    event = threading.Event()
    with pytest.raises(HomelabError) as raised:
        Probe(1).create({"vm": "sandbox", "event": event})
    assert raised.value.wanted == "sandbox: create of Probe done within 1 s"
    with pytest.raises(HomelabError, match="host1: delete of Probe"):
        Probe(1).delete("id", {"host": "host1", "event": event})
    event.set()


def test_what_ends_in_time_answers_and_fails_as_ever() -> None:
    assert Probe(60).create({"a": 1}).outs == {"a": 1}
    with pytest.raises(ValueError, match="its own"):
        Probe(60).create({"error": ValueError("its own")})


def test_a_host_that_is_no_longer_configured_has_the_usual_limit() -> None:
    assert Probe(0).seconds({}) == 7 + 2 + 30
    assert Probe(0).seconds({"gone": True}) == 10_800 + 1200 + 600


def subclasses(kind: type[HostProvider]) -> list[type[HostProvider]]:
    return [one for child in kind.__subclasses__() for one in (child, *subclasses(child))]


def test_every_act_of_every_provider_is_limited() -> None:
    for folder in ("components", "proxmox"):
        for path in (PROJECT / folder).glob("*.py"):
            importlib.import_module(f"{folder}.{path.stem}")
    providers = subclasses(HostProvider)
    assert len(providers) > 12
    for provider in providers:
        for name in ("create", "read", "update", "delete"):
            if name in provider.__dict__:
                assert hasattr(provider.__dict__[name], "__wrapped__"), f"{provider.__name__}.{name}"
