"""What a start has done to a VM's cards (homelab/cards/start.py): well, a remark, or lost, by what is true afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from homelab import tables
from homelab.cards.start import functions_of, outcome_of
from homelab.errors import HomelabError
from homelab.facts.host import HostFacts
from tests.conftest import shared
from tests.unit.hosts import desktop, device

TEXTS: dict[str, list[str]] = tables.read(Path(__file__).parent / "kernel_texts.yaml")
CARD, AUDIO = "0000:01:00.0", "0000:01:00.1"
VM = "VM 103 (sandbox)"
NOT_RESET = "failed to reset PCI device '{}', but trying to continue as not all devices need a reset"
LOG = [
    f"error writing '1' to '/sys/bus/pci/devices/{CARD}/reset': Inappropriate ioctl for device",
    NOT_RESET.format(CARD),
]


def host(*methods: str | None, **changes: object) -> HostFacts:
    """The desktop; ``methods``: what its card's functions list as resets, in their order; None: they have no such file."""
    states = {address: {"reset_method": way} for address, way in zip((CARD, AUDIO), methods, strict=False)}
    return desktop(card_states=states, **changes)


def start(after: HostFacts, *log: str, before: HostFacts | None = None) -> tuple[list[HomelabError], list[str]]:
    return outcome_of(before or desktop(), after, [CARD, AUDIO][: len(after.in_slot("0000:01:00"))], list(log), VM)


# -- a reset that failed ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("methods", [("bus", None), ("flr bus", "flr"), ("", None), (None, None)])
def test_a_reset_that_failed_is_a_remark(methods: tuple[str | None, str | None]) -> None:
    errors, remarks = start(host(*methods), *LOG)
    assert errors == [] and len(remarks) == 1
    assert CARD in remarks[0] and "normal for one of several functions whose only reset is their bus" in remarks[0]


def test_a_start_whose_resets_worked_says_nothing() -> None:
    assert start(host("flr bus", "flr"), "TASK OK") == ([], [])


def test_what_an_owner_posted_of_a_vm_that_works_is_no_failure() -> None:
    log = shared("failures", "reset-write-inappropriate-ioctl-benign.txt").read_text(encoding="utf-8").splitlines()
    slot = "0000:c5:00"
    both = [
        device(f"{slot}.{number}", ids, code, 15)
        for number, ids, code in ((0, "1002:1900", "030000"), (1, "1002:1640", "040300"))
    ]
    facts = desktop(*both, card_states={f"{slot}.0": {"reset_method": "bus"}})
    errors, remarks = outcome_of(desktop(*both), facts, [f"{slot}.0", f"{slot}.1"], log, VM)
    assert errors == [] and "normal for one of several functions" in remarks[0]


# -- a card that is lost ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "after",
    [
        pytest.param(host("bus", None, lost=[CARD]), id="its configuration space"),
        pytest.param(host("bus", None, lost=[AUDIO]), id="that of its second function"),
        pytest.param(host("bus", devices=desktop().devices[:3]), id="gone from the bus"),
        *(
            pytest.param(host("bus", None, kernel_log=text), id=f"{name} {number}")
            for name in ("inaccessible", "lost", "not-ready", "bus-fatal", "link-down")
            for number, text in enumerate(TEXTS[name])
        ),
    ],
)
def test_a_card_lost_after_the_start_is_an_error_with_or_without_reset(after: HostFacts) -> None:
    facts = desktop()
    for log in (LOG, []):
        assert len(outcome_of(facts, after, [CARD, AUDIO], log, VM)[0]) == 1


def test_what_qemu_says_of_a_card_that_does_not_wake_up_is_an_error() -> None:
    stuck = "kvm: vfio: Unable to power on device, stuck in D3"
    (error,) = start(host("bus", None), *LOG, stuck, "TASK OK")[0]
    assert error.found.startswith(f"the log says: {stuck}") and error.next.startswith("shut the VM down")


@pytest.mark.parametrize("name", ["reset-failed", "bus-error", "pending-transaction"])
def test_what_need_not_be_the_end_of_a_card_is_a_remark(name: str) -> None:
    errors, remarks = start(host("flr bus", "flr", kernel_log=TEXTS[name][0]))
    assert errors == [] and len(remarks) == 1


def test_what_was_so_before_a_start_is_not_of_that_start() -> None:
    text = TEXTS["inaccessible"][0]
    before = host("bus", None, lost=[CARD], kernel_log=text)
    assert start(before, *LOG, before=before)[0] == []
    answers = host("bus", None, kernel_log=text)
    assert start(host("bus", None, kernel_log=f"{text}\nusb 1-1: new device"), before=answers) == ([], [])


# -- which functions -------------------------------------------------------------------------------------------------
def test_a_running_vms_functions_are_those_that_are_reserved_for_it() -> None:
    guests = {
        "running": [103],
        "configs": [{"kind": "vm", "id": 103, "lines": "hostpci0: mapping=a\nhostpci1: 0000:0b:00"}],
        "mappings": "a\n\tmap node=pve,path=0000:01:00,id=10de:2b85\n\tmap node=pve2,path=0000:02:00\n",
        "reservations": f"{CARD} 103 pid:1\n0000:02:00.0 104 pid:2\n",
    }
    assert functions_of(desktop(guests=guests), 103) == [CARD]
    off = desktop(guests={**guests, "reservations": ""}, cluster={"node": "pve"})
    assert functions_of(off, 103) == [CARD, AUDIO, "0000:0b:00.0"]
    assert functions_of(off, 104) == []
    usb = {**guests, "configs": [{"kind": "vm", "id": 105, "lines": "usb0: mapping=a"}]}  # a mapping of USB devices
    assert functions_of(desktop(guests=usb), 105) == []
