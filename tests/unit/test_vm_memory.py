"""When the note that a VM ran counts: what isn't certain starts nothing (homelab/provider/vm_memory.py)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from homelab.provider import vm_memory

OURS, AT = "uuid=aaaaaaaa-0000-0000-0000-000000000000", 1_700_000_000
NOTED = {"identity": OURS, "guest": "sandbox", "at": AT, "boot": "b1"}
HOST = {"task": "", "log": "", "started": "no", "now": AT + 60, "boot": "b1"}


class Answering:
    """A session with a host that has this note; ``host``: what its tasks, clock and boot say."""

    def __init__(self, noted: dict[str, Any] | None, host: dict[str, Any]) -> None:
        self.noted, self.host, self.verbs = noted, host, list[str]()

    async def run(self, verb: str, _script: str) -> str:
        self.verbs.append(verb)
        if verb == "started":
            return json.dumps(self.host)
        return json.dumps({"note": json.dumps(self.noted) if self.noted else ""})


@pytest.mark.parametrize(
    ("noted", "host", "identity", "why"),
    [
        ({}, {}, OURS, ""),
        ({}, {}, OURS.replace("a", "b"), "the same VM"),
        ({}, {"started": "yes"}, OURS, "it was started since"),
        ({}, {"boot": "b2"}, OURS, "the node has restarted"),
        ({}, {"now": AT + 3600}, OURS, "more than an hour"),
        ({}, {"now": AT - 3600}, OURS, "more than an hour"),
        ({"boot": ""}, {"boot": ""}, OURS, "the node has restarted"),
        ({"at": 0}, {}, OURS, "more than an hour"),
    ],
    ids=["it counts", "another VM", "started", "restarted", "old", "of a later time", "no boot", "an older version's"],
)
def test_a_note_counts_only_where_nobody_can_have_switched_the_vm_off_since(
    capsys: pytest.CaptureFixture[str], noted: dict[str, Any], host: dict[str, Any], identity: str, why: str
) -> None:
    session: Any = Answering(NOTED | noted, HOST | host)
    found = asyncio.run(vm_memory.is_owed_since(session, 103, "sandbox", lambda: identity))
    assert (found == AT) is (why == "")
    assert ("apply" in session.verbs) is (why != ""), "what doesn't count is forgotten"
    assert why in capsys.readouterr().out


def test_where_nothing_is_noted_nothing_more_is_asked() -> None:
    session: Any = Answering(None, HOST)
    assert asyncio.run(vm_memory.is_owed_since(session, 103, "sandbox", lambda: OURS)) is None
    assert session.verbs == ["noted"]
