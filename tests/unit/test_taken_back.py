"""What is said, and done, of a VM that goes off again soon after its start with a change."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from homelab.errors import HomelabError, LoginRefusedError
from homelab.remote.proxmox.api import Api
from homelab.remote.proxmox.errors import ApiError
from homelab.remote.proxmox.machine import Machine
from homelab.vm.config import Change
from remote_scripts.layers.vm_starts import Answer

REFUSED = ApiError(wanted="", found="500 broken", why="", next="", status=500, reason="broken")
LOGIN = LoginRefusedError(wanted="", found="its agent is locked", why="", next="")
UNKNOWN = "is off, and it isn't known whether it has back what it had"
BACK, KEEPS = "VM 103 (sandbox) has its old configuration back", "it keeps the change"


def seen(stopped_by: str) -> Answer:
    return Answer(True, stopped_by, 0, "b1")


class Node:
    """The VM's configuration on its node. `pending`: what waits for its next start; `REFUSED`: it doesn't say. `failure`: of each write."""

    node, node_time = "pve", 0.0

    def __init__(self, pending: Any, failure: HomelabError | None = None) -> None:
        self.pending, self.failure, self.config = pending, failure, {"cores": "4", "digest": "d1"}

    def get(self, path: str, _wanted: str) -> Any:
        if path.endswith("/pending") and self.pending is REFUSED:
            raise REFUSED
        return self.pending if path.endswith("/pending") else self.config

    def put(self, _path: str, _wanted: str, *, digest: str, **parameters: str) -> None:
        assert digest == "d1"
        if self.failure:
            raise self.failure
        self.config |= parameters


@pytest.mark.parametrize(
    ("answer", "pending", "failure", "says", "cores", "starts"),
    [
        (seen(""), [], None, f"{BACK}, and runs again without the change", "2", 1),
        (seen("anna@pam"), [], None, f"anna@pam has switched it off or restarts it: {KEEPS}", "4", 0),
        (seen("root@pam"), [], None, f"\n        root@pam has switched it off or restarts it: {KEEPS}", "4", 0),
        (None, [], None, f"{BACK}, and stays off: whether somebody has switched it off isn't known", "2", 0),
        (seen(""), [{"key": "cores", "pending": "2"}], None, f"{BACK} from its next start on: it was started", "2", 0),
        (seen(""), [{"key": "balloon", "pending": "2"}], None, f"{BACK}, and runs again without the change", "2", 1),
        (seen(""), REFUSED, None, f"{BACK}; whether it was started with the change meanwhile isn't known, so this run doesn't start it: 500 broken", "2", 0),
        (seen(""), [], REFUSED, f"{UNKNOWN} (`qm config 103`): 500 broken", "4", 0),
        (seen(""), [], LOGIN, f"{UNKNOWN} (`qm config 103`): its agent is locked", "4", 0),
    ],
)  # fmt: skip
def test_a_vm_that_goes_off_again_has_its_old_configuration_back_unless_somebody_wants_it_off(
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer | None,
    pending: Any,
    failure: HomelabError | None,
    says: str,
    cores: str,
    starts: int,
) -> None:
    started = list[Machine]()

    def start(machine: Machine) -> None:
        started.append(machine)

    monkeypatch.setattr(Machine, "start", start)
    node = Node(pending, failure)
    memory = cast(Any, SimpleNamespace())
    machine = Machine(cast(Api, node), 103, "sandbox", memory=memory, starts_on=lambda _, __: answer)
    machine._last_start = {"cores": "2"}, Change({"cores": "4"}), True
    error = machine.taken_back(machine.not_running_error())
    assert says in error.found
    assert (node.config["cores"], len(started)) == (cores, starts)


def test_a_stop_of_root_may_be_has_where_ha_has_started_the_vm() -> None:
    machine = Machine(
        cast(Api, Node([])),
        103,
        "sandbox",
        memory=cast(Any, None),
        starts_on=lambda _, __: seen("root@pam"),
    )
    machine._last_start, machine._has_asked_ha = ({}, Change({"cores": "4"}), True), True
    assert "HA, or root@pam itself, has switched it off" in machine.taken_back(machine.not_running_error()).found
