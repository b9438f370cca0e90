"""The layer passthrough_test, whole, over SSH on the lab: VMs really boot the initramfs that it has made. What fails: tests/agent/test_passthrough_test.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from homelab.errors import HomelabError
from homelab.remote import ssh
from lab import Lab, LogMark
from remote_scripts.both.passthrough_test import NAME, Wanted
from tests.lab.host_kit import rebound
from tests.lab.stack_kit import host_of

FUNCTIONS = {"0000:01:00.0": "10de:2b85", "0000:01:00.1": "10de:22e8"}
SCENARIO = "rtx5090"


@pytest.fixture
def lab(lab: Lab) -> Lab:
    """A lab whose card is on vfio-pci; VM 103 runs without it."""
    for address in FUNCTIONS:
        lab.run(rebound(address, "vfio-pci"))
    return lab


def apply(lab: Lab, functions: dict[str, str] = FUNCTIONS, **options: Any) -> dict[str, Any]:
    return ssh.Session(host_of(lab)).ask("apply", "passthrough_test", Wanted(functions=functions, **options))


def failure(lab: Lab, **options: Any) -> HomelabError:
    """The test's message; whatever it was, no VM, no file and no process is left, and no device is held."""
    before = lab.snapshot("etc/pve", "var/lib"), reserved(lab)
    with pytest.raises(HomelabError) as raised:
        apply(lab, **options)
    assert (lab.snapshot("etc/pve", "var/lib"), reserved(lab)) == before
    assert_nothing_is_left(lab)
    return raised.value


def assert_nothing_is_left(lab: Lab) -> None:
    assert NAME not in lab.run("qm list").stdout
    assert not (lab.root / "run/homelab-passthrough-test").exists()
    known = lab.machine._host().machine["guests"]
    assert {folder.name for folder in (lab.state / "guests").glob("*")} <= set(known)
    assert "process" not in json.dumps(lab.machine._host().machine["guests"])


def reserved(lab: Lab) -> str:
    """Which VM has which device."""
    file = lab.root / "run/qemu-server/pci-id-reservations"
    return file.read_text() if file.exists() else ""


def power(lab: Lab, since: LogMark) -> list[str]:
    """The verbs of qm that changed something."""
    return [entry["args"][0] for entry in lab.programs(since) if entry["program"] == "qm"]


def test_the_vm_sees_the_card_with_its_bars_and_is_gone(lab: Lab) -> None:
    since = lab.mark()
    assert apply(lab) == {
        "kernel": "6.17.2-1-pve",
        "vmid": 100,
        "functions": [
            {
                "guest": "0000:01:00.0",
                "address": "0000:01:00.0",
                "id": "10de:2b85",
                "class": "030000",
                "bars": [
                    {"index": 0, "size": 64 << 20},
                    {"index": 1, "size": 32 << 30},
                    {"index": 2, "size": 32 << 20},
                ],
            },
            {
                "guest": "0000:01:00.1",
                "address": "0000:01:00.1",
                "id": "10de:22e8",
                "class": "040300",
                "bars": [{"index": 0, "size": 16 << 10}],
            },
        ],
    }
    assert_nothing_is_left(lab)
    assert power(lab, since) == ["create", "start", "stop", "destroy"]
    assert "status: running" in lab.run("qm status 103").stdout


def test_a_second_test_is_as_the_first(lab: Lab) -> None:
    assert apply(lab) == apply(lab)


def test_two_cards_with_the_same_ids_are_each_found(tmp_path: Path) -> None:
    cards = {
        "0000:1d:00.0": "10de:2204",
        "0000:1d:00.1": "10de:1aef",
        "0000:1e:00.0": "10de:2204",
        "0000:1e:00.1": "10de:1aef",
    }
    with Lab.start("two-identical", state=tmp_path / "lab") as lab:
        for address in cards:
            lab.run(rebound(address, "vfio-pci"))
        seen = apply(lab, cards)
        assert [(f["address"], f["guest"], f["id"]) for f in seen["functions"]] == [
            ("0000:1d:00.0", "0000:01:00.0", "10de:2204"),
            ("0000:1d:00.1", "0000:01:00.1", "10de:1aef"),
            ("0000:1e:00.0", "0000:02:00.0", "10de:2204"),
            ("0000:1e:00.1", "0000:02:00.1", "10de:1aef"),
        ]
        for hidden, found in (("0000:1e:00", "0000:1e:00.0 (10de:2204)"), ("0000:1d:00.1", "0000:1e:00.1 (10de:1aef)")):
            lab.fault("card-invisible", hidden)
            assert f"{found}: is not in the VM" in failure(lab, functions=cards).found
