"""Which hosts of the settings are nodes of one cluster, and whose guests are whose."""

from __future__ import annotations

import json

import pytest

from homelab.errors import HomelabError
from homelab.resources.work.base import StackTexts
from tests.unit.test_moved_containers import CLUSTER

ALONE = {**CLUSTER["pve1"], "address": "192.0.2.9", "cluster": None}
STACK = StackTexts({"hosts": json.dumps({**CLUSTER, "pve9": ALONE}), "allowPlainSecrets": "true"})


def test_a_guest_is_its_hosts_and_may_be_on_another_of_its_cluster() -> None:
    vms = {name: {"host": host, "vmid": 103} for name, host in (("a", "pve1"), ("b", "pve9"))}
    stack = StackTexts({**STACK.texts, "vms": json.dumps(vms)})
    assert [[*stack.vms(host)] for host in ("pve1", "pve2", "pve9")] == [["a"], [], ["b"]]
    assert [[*stack.entries_of("vms", 103, host)] for host in ("pve1", "pve2", "pve9", "gone")] == [
        ["a"],
        ["a"],
        ["b"],
        [],
    ]
    moved = HomelabError(wanted="a", found="it is elsewhere", why="c", next="d")
    for node in ("pve1", "pve9"):
        stack.leave_moved("a", "vms", 103, node, moved)
    for node, section, guest in (
        ("pve2", "vms", 103),
        ("gone", "vms", 103),
        ("pve1", "vms", 104),
        ("pve1", "containers", 103),
    ):
        with pytest.raises(HomelabError, match="it is elsewhere"):
            stack.leave_moved("a", section, guest, node, moved)
