"""What a start of a VM would find of its shared cards, as the layer diagnose says it; nothing is changed."""

from __future__ import annotations

import json
import shutil

import pytest

from remote_scripts.both.diagnose import Answer, Wanted
from remote_scripts.notes.card import Card
from remote_scripts.notes.handover import CARDS
from remote_scripts.tools.plain import of_plain
from tests.agent import guest_kit
from tests.agent.handover_kit import AUDIO, BIG, DEVICES, GPU, OTHER, SERVICE, START, STATE, STOP, VM, Host, thread
from tests.agent.handover_kit import host as host  # a fixture

SMALL = Card(name="small", functions={OTHER: "10de:2684"}, vms=(103,))


def starts(host: Host, vmid: int = 103) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Of each card that the VM names: why its start wouldn't get it, and the containers that would be shut down."""
    before = host.everything()
    answer = of_plain(Answer, host.ask("read", "diagnose", Wanted(vm=vmid)))
    assert host.everything() == before
    return {start.card: (start.refused, start.containers) for start in answer.starts}


def refused(host: Host, vmid: int = 103) -> str:
    why, containers = starts(host, vmid)["big"]
    assert not containers
    return why


def test_a_vm_that_is_off_is_told_who_would_be_shut_down_for_it(host: Host) -> None:
    host.cards(SMALL, BIG)
    assert starts(host) == {"big": ("", ("950",))}
    host.write("/state/qm/103", "unknown")
    assert "it isn't known whether VM 103 runs" in refused(host)


@pytest.mark.parametrize(
    "change",
    [{"/state/qm/103": "running"}, {VM: "name: gaming\n"}, {CARDS: ""}],
    ids=["it runs", "it names no card", "nothing is known of its cards"],
)
def test_of_a_vm_that_takes_nothing_now_nothing_is_said(host: Host, change: dict[str, str]) -> None:
    for path, text in change.items():
        host.write(path, text)
    assert starts(host) == {}


def test_a_card_that_is_on_vfio_pci_goes_to_it_without_a_handover(host: Host) -> None:
    for address in (GPU, AUDIO):
        host.bind(address, "vfio-pci")
    assert starts(host) == {"big": ("", ())}


def test_it_waits_for_a_run_as_a_start_would(host: Host) -> None:
    with host.up_at_work("anna"):
        assert "an up or a destroy of this host is at work" in refused(host)


def test_what_a_start_is_refused_for_by_its_lock_or_another_vm_is_said(host: Host) -> None:
    conf = host.read(VM)
    for lock, said in (("backup", "a backup of VM 103, which was off"), ("snapshot", "it is locked, snapshot")):
        host.write(VM, f"lock: {lock}\n{conf}")
        assert refused(host).startswith(said)
    host.write(VM, conf)
    host.write("/run/qemu-server/pci-id-reservations", f"{GPU} 104 pid:4711\n")
    guest_kit.guest(host, guest_kit.VM, 104, power="running")
    assert refused(host) == "VM 104 has its card"


def test_who_has_it_is_named_but_for_who_ends_with_a_container(host: Host) -> None:
    for pid, group in ((41, "/lxc/950/ns"), (42, "/system.slice/ollama.service")):
        thread(host, pid, pid, "7f00-7f01 rw-s 00000000 00:05 103 /dev/nvidia0\n", group)
    assert refused(host) == "in use by ollama (PID 42 of ollama.service)"
    shutil.rmtree(host.root / "proc/42")
    assert starts(host) == {"big": ("", ("950",))}


def test_what_stands_against_it_is_said_as_a_start_would(host: Host) -> None:
    host.write(f"{DEVICES}/{GPU}/boot_vga", "1\n")
    assert "has this host's screen" in refused(host)
    host.write(VM.replace("103", "104"), host.read(VM))
    host.write("/state/qm/104", "stopped")
    assert "the settings don't give it to this VM" in refused(host, 104)
    host.write(STATE, json.dumps({"state": "DEAD", "vm": "103", "boot": "boot", "why": "it doesn't answer"}))
    assert refused(host) == "DEAD: it doesn't answer"
    host.write(STATE, "{")
    assert "to read /var/lib/homelab/handover/big.state: " in refused(host)


def test_a_card_that_another_vm_has_is_there_again_once_that_one_is_off(host: Host) -> None:
    host.cards(Card(name="big", functions=BIG.functions, vms=(103, 104)))
    host.write(VM.replace("103", "104"), host.read(VM))
    host.write("/state/qm/104", "stopped")
    host.run(*START)
    assert starts(host) == {"big": ("", ())}  # which is its own
    assert "`qm shutdown 103` gives it back" in refused(host, 104)
    host.run(*STOP)
    host.run(*SERVICE)
    assert starts(host, 104) == {"big": ("", ("950",))}
