"""When the note that a VM ran counts: what isn't certain starts nothing (homelab/provider/vm_memory.py; tests/agent/test_guest_tasks.py has the host's part)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from homelab.host.facts import noted_in
from homelab.provider import vm_memory
from remote_scripts.layers.vm_owed import Wanted as VmOwed

OURS, AT = "uuid=aaaaaaaa-0000-0000-0000-000000000000", 1_700_000_000
TASK = "UPID:pve:000001B6:0013BA59:6B09406B:qmshutdown:103:root@pam:"
NOTED = {"identity": OURS, "guest": "sandbox", "at": AT, "boot": "b1", "off": False, "tasks": [TASK]}


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("vm/103", {"record": {}}),
        ("power/103", NOTED),
        ("mapping/pve/gpu", {"gpu": "gpu", "path": "0000:01:00", "before": None, "had_flag": False}),
    ],
)
def test_a_note_that_lacks_something_counts_as_none(name: str, whole: dict[str, Any]) -> None:
    assert noted_in({name: json.dumps(whole)}, name) == whole
    for key in set(whole) - {"guest"}:
        lacking = {other: value for other, value in whole.items() if other != key}
        for note in (lacking, {**whole, key: 0.5}):
            assert noted_in({name: json.dumps(note)}, name) is None


class Answering:
    """A session with a host that has this note; ``why``: what it says of whether the VM is to run again."""

    def __init__(self, noted: dict[str, Any] | None, why: str) -> None:
        self.noted, self.why, self.verbs, self.asked = noted, why, list[str](), list[object]()

    def ask(self, verb: str, layer: str, wanted: object) -> dict[str, Any]:
        if layer == "vm_owed":
            self.asked.append(wanted)
            return {"why": self.why}
        assert layer == "ledger"
        self.verbs.append(verb)
        return {"note": json.dumps(self.noted) if self.noted else ""}


@pytest.mark.parametrize(
    ("identity", "host_says", "why"),
    [
        (OURS, "", ""),
        (OURS.replace("a", "b"), "", "the same VM"),
        (OURS, "it was started since", "it was started since"),
    ],
    ids=["it counts", "another VM", "the host says no"],
)
def test_a_note_counts_only_for_the_same_vm_and_where_the_host_knows_nothing_against_it(
    capsys: pytest.CaptureFixture[str], identity: str, host_says: str, why: str
) -> None:
    session: Any = Answering(NOTED, host_says)
    found = vm_memory.is_owed_since(session, 103, "sandbox", lambda: identity)
    assert (found == AT) is (why == "")
    assert ("apply" in session.verbs) is (why != ""), "what doesn't count is forgotten"
    assert why in capsys.readouterr().out


@pytest.mark.parametrize("noted", [{}, {"off": True}], ids=["shut down next", "off already"])
def test_the_host_is_told_what_is_noted_and_whose_shutdown_is_ours(noted: dict[str, Any]) -> None:
    session: Any = Answering(NOTED | noted, "")
    vm_memory.is_owed_since(session, 103, "sandbox", lambda: OURS)
    assert session.asked == [VmOwed(vmid=103, at=AT, boot="b1", tasks=(TASK,), off=bool(noted))]


def test_where_nothing_is_noted_nothing_more_is_asked() -> None:
    session: Any = Answering(None, "")
    assert vm_memory.is_owed_since(session, 103, "sandbox", lambda: OURS) is None
    assert session.verbs == ["read"]
