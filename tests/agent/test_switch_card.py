"""The layer switch_card: a rehearsal of a switch by hand, the VM's start and shutdown, and the story."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import pytest

from remote_scripts.layers.switch_card import Wanted
from remote_scripts.shared.card import Card
from remote_scripts.tools.run import Done
from tests.agent.handover_kit import (
    AUDIO,
    BIG,
    DEVICES,
    GPU,
    OTHER,
    START,
    STORY,
    VM,
    bind,
    everything,
    run,
    up_at_work,
)
from tests.agent.handover_kit import host as host  # a fixture
from tests.agent.kit import Host

TWO = Card(name="big", functions=BIG.functions, vms=(103, 104))


def rehearsed(host: Host) -> Any:
    before = everything(host)
    small = Card(name="small", functions={OTHER: "10de:2684"}, vms=(103,))
    said = host.ask("plan", "switch_card", Wanted(card="big", vmid=103, cards=(small, TWO)))
    assert everything(host) == before
    return said


@pytest.mark.parametrize(
    ("runs", "refused"),
    [
        ("stopped", ""),
        ("running", "VM 103 runs already, without it"),
        ("unknown", "it isn't known whether VM 103 runs"),
    ],
)
def test_a_rehearsal_says_whether_the_vm_can_start(host: Host, runs: str, refused: str) -> None:
    host.write("/vm103", f"{runs}\n")
    said = rehearsed(host)
    assert (refused in said["refused"]) and bool(said["refused"]) is bool(refused), said
    assert said["containers"] == ([] if refused else ["950"])


def test_a_card_that_other_configuration_has_bound_stands_where_it_is(host: Host) -> None:
    for address in (GPU, AUDIO):
        bind(host, address, "vfio-pci")
    assert "on vfio-pci already, not by this program" in rehearsed(host)["stands"]


def test_a_rehearsal_waits_for_a_run_as_a_start_would(host: Host) -> None:
    with up_at_work(host, "anna"):
        assert "an up or a destroy of this host is at work" in rehearsed(host)["refused"]


def test_who_has_it_is_named_but_for_who_ends_with_a_container(host: Host) -> None:
    for pid, group in ((41, "/lxc/950/ns"), (42, "/system.slice/ollama.service")):
        host.write(f"/proc/{pid}/comm", "ollama\n")
        host.write(f"/proc/{pid}/cgroup", f"0::{group}\n")
        host.write(f"/proc/{pid}/task/{pid}/maps", "7f00-7f01 rw-s 00000000 00:05 103 /dev/nvidia0\n")
        (host.root / f"proc/{pid}/task/{pid}/fd").mkdir()
    assert rehearsed(host)["refused"] == "in use by ollama (PID 42 of ollama.service)"
    shutil.rmtree(host.root / "proc/42")
    assert rehearsed(host) == {"stands": "", "refused": "", "containers": ["950"], "way": "it is unbound"}


def test_what_stands_against_it_is_said_as_a_start_would(host: Host) -> None:
    host.write(f"{DEVICES}/{GPU}/boot_vga", "1\n")
    assert "has this host's screen" in rehearsed(host)["refused"]
    host.write(f"{DEVICES}/{GPU}/boot_vga", "0\n")
    host.write(VM, "name: gaming\n")
    assert "no hostpci option of VM 103 names the card" in rehearsed(host)["refused"]


def test_the_vm_is_started_and_shut_down_as_proxmox_ve_does(host: Host) -> None:
    asked: list[list[str]] = []

    def qm(words: Sequence[str], _stdin: bytes) -> Done:
        asked.append([*words])
        return Done(1, b"no\n", b"VM is locked\n")

    host.programs["qm"] = qm
    assert host.ask("apply", "switch_card", Wanted(card="big", vmid=103, start=True)) == {
        "well": False,
        "said": "no\nVM is locked",
    }
    for cut in (False, True):
        host.ask("apply", "switch_card", Wanted(card="big", vmid=103, seconds_off=20, cut=cut))
    ends = ["shutdown", "103", "--timeout", "20"]
    assert asked == [["start", "103"], ends, [*ends, "--forceStop", "1"]]


def test_the_story_is_told_as_it_goes_on(host: Host) -> None:
    stock = host.ask("read", "switch_card", Wanted(card="big"))
    assert (stock["size"], stock["runs"], stock["record"]["state"], stock["story"]) == (0, "unknown", "HOST", "")
    run(host, *START)
    known = len(host.read(STORY))
    first = host.ask("read", "switch_card", Wanted(card="big", vmid=103))
    assert first["size"] == known and "VM 103 has it" in first["story"] and first["runs"] == "no"
    assert (first["record"]["state"], first["record"]["vm"]) == ("VM", "103")
    host.write(STORY, f"{host.read(STORY)}more\n")
    assert host.ask("read", "switch_card", Wanted(card="big", known=known))["story"] == "more\n"
