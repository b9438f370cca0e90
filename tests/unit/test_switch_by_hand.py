"""``homelab switch --to containers``: how long it waits for which VM, and when it gives up; the host's answers are given.

What it does on a host: tests/lab/test_switch.py.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from homelab.cli import switch
from homelab.settings import Vm
from remote_scripts.layers.switch_card import Wanted
from tests.unit.test_handover import facts, host

VM = Vm.model_validate({"host": "pve", "vmid": 103, "gpus": ["rtx5090"], "shutdown": {"timeout": 7200}})


class Told:
    """A connection whose looks find these, one after the other, the last one for ever: state, VM, whether VM 103 runs."""

    def __init__(self, *looks: str, well: bool = True) -> None:
        self.looks = itertools.chain((look.split() for look in looks), itertools.repeat(looks[-1].split()))
        self.well = well
        self.asked: list[tuple[str, float]] = []

    def ask(
        self, verb: str, layer: str, wanted: Wanted, seconds: float = 0, meanwhile: object = None
    ) -> dict[str, Any]:
        assert layer == "switch_card"
        if verb == "apply":
            assert (wanted.vmid, wanted.start, wanted.seconds_off) == (103, False, 7200)
            self.asked.append((verb, seconds))
            return {"well": self.well, "said": "VM is locked (backup)"}
        state, vm, runs = next(self.looks)
        return {"size": 0, "record": noted_as(state, vm), "story": "", "runs": runs}


def noted_as(state: str, vm: str = "103") -> dict[str, Any]:
    return {"state": state, "vm": vm, "boot": "1", "since": 1700000000, "why": "because"}


def back(told: Any, state: str, running: list[int]) -> int:
    found = facts(
        handover={"enabled": True, "cards": {"rtx5090": noted_as(state)}},
        guests={"running": running, "configs": [], "mappings": "", "reservations": ""},
    )
    return switch.Switch(told, host(), "rtx5090", None, {"gaming": VM}, found).carry_out()


@pytest.mark.parametrize(
    ("state", "running", "looks", "shut_down", "status", "said"),
    [
        ("VM", [103], ["VM 103 yes", "VM 103 yes", "RETURNING 103 no", "HOST - no"], 1, 0, "its containers"),
        ("VM", [], ["VM 103 no", "RETURNING 103 no", "HOST - no"], 0, 0, "its containers"),
        # One that starts, and runs by then, is shut down once it does.
        ("DRAINING", [], ["DRAINING 103 no", "VM 103 no", "VM 103 yes", "RETURNING 103 no", "HOST - no"], 1, 0, "its"),
        # HA answers at once, and shuts down later.
        ("VM", [103], ["VM 103 yes"] * 5 + ["RETURNING 103 no", "HOST - no"], 1, 0, "its containers"),
        ("VM", [103], ["VM 103 yes"], 1, 1, "VM 103 hasn't gone off, and keeps"),
        ("VM", [103], ["VM 103 yes", "VM 103 no", "VM 103 yes"], 1, 1, "had gone off, and runs again"),
        ("VM", [103], ["VM 103 yes", "VM 104 no"], 1, 1, "is with VM 104 since"),
        ("VM", [103], ["VM 103 yes", "HELD 103 no"], 1, 1, "HELD since"),
        # A backup, or a lock that was left.
        ("VM", [], ["VM 103 no"], 0, 1, "nothing holds VM 103"),
        ("VM", [], ["VM 103 unknown"], 0, 1, "nothing holds VM 103"),
    ],
)
def test_it_waits_as_long_as_the_vm_may_take_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    state: str,
    running: list[int],
    looks: list[str],
    shut_down: int,
    status: int,
    said: str,
) -> None:
    told = Told(looks[0], *looks)  # the first look is for what is known already

    now = itertools.count(step=300)  # seconds from one look at the clock to the next
    monkeypatch.setattr(switch, "time", SimpleNamespace(monotonic=lambda: next(now), sleep=lambda _: None))
    assert back(told, state, running) == status
    assert said in "".join(capsys.readouterr())
    assert told.asked == [("apply", switch.SWITCH_SECONDS + 7200)] * shut_down


def test_a_vm_that_does_not_go_off_keeps_the_card(capsys: pytest.CaptureFixture[str]) -> None:
    told = Told("VM 103 yes", well=False)
    assert back(told, "VM", [103]) == 1
    said = capsys.readouterr().err
    assert "VM is locked (backup)" in said and "VM 103 hasn't gone off" in said


@pytest.mark.parametrize(
    ("state", "vm", "status", "said"),
    [
        ("VM", "103", 0, "is with VM 103 since"),
        ("VM", "104", 1, "is with VM 104 since"),
        ("RETURNING", "103", 0, "is on its way to or from VM 103"),
        ("DETACHED", "104", 1, "is on its way to or from VM 104"),
    ],
)
def test_a_rehearsal_says_where_a_card_is_that_is_away(
    capsys: pytest.CaptureFixture[str], state: str, vm: str, status: int, said: str
) -> None:
    found = facts(
        handover={"enabled": True, "cards": {"rtx5090": noted_as(state, vm)}},
        guests={
            "running": [],
            "configs": [{"kind": "vm", "id": 103, "lines": ""}],
            "mappings": "",
            "reservations": "",
        },
    )
    told: Any = Told("HOST - no")
    assert switch.Switch(told, host(), "rtx5090", VM, {"gaming": VM}, found).rehearse() == status
    assert said in capsys.readouterr().out
