"""What of a made VM is changed in place."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from homelab.errors import HomelabError
from homelab.provider.virtual_machine import VirtualMachineWork
from homelab.resources.virtual_machine import DiskInputs
from homelab.vm.config import Change
from tests.unit.test_new_guests import INPUTS

BEFORE = dataclasses.replace(INPUTS, config={"memory": "512", "net0": "virtio,bridge=vmbr0"})
MAC = "BC:24:11:00:00:01"
CONFIG = {"memory": "512", "net0": f"virtio={MAC},bridge=vmbr0,firewall=1", "args": "-x"}
LARGER: dict[str, Any] = {"disk": DiskInputs(storage="local", size=16)}


class Work(VirtualMachineWork):
    """`done`: what is changed, and whether the disk grows; `on`: whether the VM runs."""

    def __init__(self, *, on: bool = False, config: dict[str, str] = CONFIG) -> None:
        super().__init__({})
        self.done: list[Any] = []
        self.on, self.config_now = on, config

    def _machine(self, inputs: Any) -> Any:
        return SimpleNamespace(
            label="VM 103",
            exists=lambda: True,
            config=lambda: self.config_now,
            say=lambda _: None,
            running=lambda: self.on,
            shut_down=lambda _: self.done.append("off"),
            destroy=lambda: self.done.append("destroyed"),
        )

    def api(self, inputs: Any) -> Any:
        return SimpleNamespace(host=SimpleNamespace(timeouts=SimpleNamespace(create=1)))

    def converge(self, _inputs: Any, _machine: Any, target: Any, keys: list[str], *_more: Any) -> bool:
        change = target(self.config_now)
        assert {*change.keys} <= {*keys}
        self.done.append(change)
        return True

    def _resize(self, inputs: Any) -> None:
        self.done.append(inputs.disk.size)


def net(value: str) -> dict[str, str]:
    return {**BEFORE.config, "net0": value}


@pytest.mark.parametrize(
    ("changes", "drift", "done"),
    [
        ({}, [], []),
        ({"config": {**BEFORE.config, "memory": "1024"}}, [], [Change({"memory": "1024"})]),
        ({}, ["memory"], [Change({"memory": "512"})]),
        ({"config": {"memory": "512"}}, [], [Change({}, ["net0"])]),
        ({"secret_config": {"cipassword": "x"}}, [], [Change({"cipassword": "x"})]),
        (LARGER, [], [16]),
        ({"config": net("virtio,bridge=vmbr1")}, [], [Change({"net0": f"virtio={MAC},bridge=vmbr1"})]),
        ({"config": net("e1000")}, [], [Change({"net0": f"e1000={MAC}"})]),
        ({"config": net("virtio=AA:00:00:00:00:01")}, [], [Change({"net0": "virtio=AA:00:00:00:00:01"})]),
        ({"config": net("virtio,macaddr=AA:00:00:00:00:01")}, [], [Change({"net0": "virtio,macaddr=AA:00:00:00:00:01"})]),
        ({"config": {**BEFORE.config, "net1": "virtio"}}, [], [Change({"net1": "virtio"})]),
    ],
)  # fmt: skip
def test_what_differs_is_changed_and_no_more(changes: dict[str, Any], drift: list[str], done: list[Any]) -> None:
    work = Work()
    work.change(dataclasses.replace(BEFORE, **changes), BEFORE, drift)
    assert work.done == done


def test_what_is_gone_already_is_not_taken_away() -> None:
    work = Work()
    work.change(BEFORE, dataclasses.replace(BEFORE, config={**BEFORE.config, "args": "-x", "numa": "1"}), [])
    assert work.done == [Change({}, ["args"])]


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
        assert work.done == [Change(done)]


@pytest.mark.parametrize(("on", "done"), [(True, ["off", "destroyed"]), (False, ["destroyed"])])
def test_one_that_runs_is_shut_down_before_it_is_removed(on: bool, done: list[str]) -> None:
    work = Work(on=on)
    work.remove(BEFORE)
    assert work.done == done
