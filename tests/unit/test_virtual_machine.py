"""What of a made VM is changed in place."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from homelab.errors import HomelabError
from homelab.provider.virtual_machine import VirtualMachineWork
from homelab.resources.virtual_machine import DiskInputs
from tests.unit.test_new_guests import INPUTS

BEFORE = dataclasses.replace(INPUTS, config={"memory": "512", "net0": "virtio,bridge=vmbr0"})
MAC = "BC:24:11:00:00:01"
CONFIG = {"memory": "512", "net0": f"virtio={MAC},bridge=vmbr0,firewall=1", "args": "-x"}
LARGER: dict[str, Any] = {"disk": DiskInputs(storage="local", size=16)}


class Work(VirtualMachineWork):
    """`done`: what is set, and whether the disk grows."""

    def __init__(self, *, config: dict[str, str] = CONFIG) -> None:
        super().__init__({})
        self.done: list[Any] = []
        self.config_now = config

    def config(self, inputs: Any) -> dict[str, str]:
        return self.config_now

    def api(self, inputs: Any) -> Any:
        return SimpleNamespace(host=SimpleNamespace(timeouts=SimpleNamespace(create=1)))

    def _put(self, inputs: Any, options: Any) -> None:
        self.done += [("put", options)] if options else []

    def _set(self, inputs: Any, settings: Any) -> None:
        self.done.append(settings)

    def _resize(self, inputs: Any) -> None:
        self.done.append(inputs.disk.size)


def net(value: str) -> dict[str, str]:
    return {**BEFORE.config, "net0": value}


@pytest.mark.parametrize(
    ("changes", "drift", "done"),
    [
        ({}, [], []),
        ({"config": {**BEFORE.config, "memory": "1024"}}, [], [{"memory": "1024"}]),
        ({}, ["memory"], [{"memory": "512"}]),
        ({"config": {"memory": "512"}}, [], [{"net0": None}]),
        ({"secret_config": {"cipassword": "x"}}, [], [("put", {"cipassword": "x"})]),
        (LARGER, [], [16]),
        ({"config": net("virtio,bridge=vmbr1")}, [], [{"net0": f"virtio={MAC},bridge=vmbr1"}]),
        ({"config": net("e1000")}, [], [{"net0": f"e1000={MAC}"}]),
        ({"config": net("virtio=AA:00:00:00:00:01")}, [], [{"net0": "virtio=AA:00:00:00:00:01"}]),
        ({"config": net("virtio,macaddr=AA:00:00:00:00:01")}, [], [{"net0": "virtio,macaddr=AA:00:00:00:00:01"}]),
        ({"config": {**BEFORE.config, "net1": "virtio"}}, [], [{"net1": "virtio"}]),
    ],
)  # fmt: skip
def test_what_differs_is_changed_and_no_more(changes: dict[str, Any], drift: list[str], done: list[Any]) -> None:
    work = Work()
    work.change(dataclasses.replace(BEFORE, **changes), BEFORE, drift)
    assert work.done == done


def test_what_is_gone_already_is_not_taken_away() -> None:
    work = Work()
    work.change(BEFORE, dataclasses.replace(BEFORE, config={**BEFORE.config, "args": "-x", "numa": "1"}), [])
    assert work.done == [{"args": None}]


@pytest.mark.parametrize(
    "changes",
    [{"disk": DiskInputs(storage="local", size=4)}, {"disk": DiskInputs(storage="fast", size=8)}, {"image": "a"}, {"template": 9}],
)  # fmt: skip
def test_what_only_a_new_disk_could_have_is_refused(changes: dict[str, Any]) -> None:
    Work().require_same_disk(dataclasses.replace(BEFORE, **LARGER), BEFORE)
    with pytest.raises(HomelabError, match="what is on the disk would be lost"):
        Work().require_same_disk(dataclasses.replace(BEFORE, **changes), BEFORE)


MARKED = {**CONFIG, "description": f"{BEFORE.mark} {'0' * 16}"}


@pytest.mark.parametrize(
    ("config", "done"),
    [
        (MARKED, {"description": f"{BEFORE.mark} {'f' * 16}"}),
        ({**MARKED, "memory": "1024"}, {"memory": "512", "description": f"{BEFORE.mark} {'f' * 16}"}),
        ({"description": MARKED["description"]}, {**BEFORE.config, "description": f"{BEFORE.mark} {'f' * 16}"}),
        ({**MARKED, "lock": "clone"}, None),
        (CONFIG, None),
        ({**CONFIG, "description": f"{BEFORE.mark}b"}, None),
    ],
)
def test_one_of_its_id_is_finished_only_if_this_stack_began_it(config: dict[str, str], done: Any) -> None:
    work = Work(config=config)
    if done is None:
        with pytest.raises(HomelabError, match="nothing was changed"):
            work.make(BEFORE, "f" * 16)
        assert work.done == []
    else:
        work.make(BEFORE, "f" * 16)
        assert work.done == [("put", done)]
