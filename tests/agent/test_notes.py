"""A note in which another version of this program has written more is read: what this one doesn't know is passed over."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from remote_scripts.notes import guest_notes, handover, owed
from remote_scripts.notes.card import Card
from remote_scripts.notes.container_note import Cards, ContainerNote, Given
from remote_scripts.notes.guest_note import Note
from remote_scripts.pve.guest_kinds import CONTAINER, VM
from remote_scripts.tools.system import System
from tests.agent.kit import Host
from tests.rows import rows

MORE = {"later": {"new": [1]}}
DEBT = {"program": "qm", "guest": 103, "name": "VM 103", "identity": "", "why": "change", "boot": "A", "known": []}
CARD: dict[str, Any] = {"name": "big", "functions": {"0000:01:00.0": "10de:2b85"}, "vms": [103]}
GIVEN = {"cards": {"minors": [0], **MORE}, "groups": {}, "nodes": [], **MORE}
READERS: dict[str, tuple[str, Any, Callable[[System], object], object]] = {
    "owed": (
        owed.OWED,
        {"debts": [DEBT | MORE], **MORE},
        lambda system: [(debt.guest, debt.why) for debt in owed.noted(system)],
        [(103, "change")],
    ),
    "the shared cards": (
        handover.CARDS,
        [CARD | MORE],
        handover.cards,
        (Card(name="big", functions=CARD["functions"], vms=(103,)),),
    ),
    "a card's record": (
        f"{handover.FOLDER}/big.state",
        {"state": "VM", "vm": "103", **MORE},
        lambda system: handover.read_record(system, "big").vm,
        "103",
    ),
    "a VM's note": (
        "/etc/pve/homelab/qemu-103",
        {"owner": "a/b/c", **MORE},
        lambda system: guest_notes.of(system, VM, 103, Note),
        Note(owner="a/b/c"),
    ),
    "a container's note": (
        "/etc/pve/homelab/lxc-901",
        {"revision": 2, "given": GIVEN, **MORE},
        lambda system: guest_notes.of(system, CONTAINER, 901, ContainerNote),
        ContainerNote(revision=2, given=Given(cards=Cards(minors=(0,)))),
    ),
}


@rows("path, content, read, expected", READERS.values(), ids=list(READERS))
def test_a_key_of_a_later_version_is_passed_over(
    host: Host, path: str, content: Any, read: Callable[[System], object], expected: object
) -> None:
    host.write(path, json.dumps(content))
    assert read(host.working_system()) == expected
