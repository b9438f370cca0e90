"""Why a host is rebooted, in a few plain words: nobody has to read a kernel command line to know what happens to the server."""

from __future__ import annotations

from typing import Any

import pytest

from homelab.host.reboot import answered, in_short, stopped, stopping
from remote_scripts.both.reboot import Planned, Reason
from remote_scripts.pve.guest_kinds import Running
from tests.rows import rows


def card(name: str, *functions: str) -> Any:
    return {
        "name": name,
        "slot": functions[0].rpartition(".")[0],
        "use": "vm",
        "functions": [{"address": one, "id": "10de:2b85", "class": "0300", "subsystem": ""} for one in functions],
    }


CARDS = {"first": card("RTX 5090", "0000:01:00.0", "0000:01:00.1"), "second": card("RTX 4090", "0000:02:00.0")}
BLACKLIST = "modprobe.blacklist=nouveau,nvidia"


def gets(words: str) -> Reason:
    return Reason(f"{words} is missing", gets=words)


def loses(word: str) -> Reason:
    return Reason(f"{word} is no longer wanted", loses=word)


def moves(address: str, to: str = "vfio-pci") -> Reason:
    return Reason(f"{address} is on nouveau, not on {to}", function=address, driver=to)


@rows(
    ("reasons", "said"),
    [
        (
            [
                gets(f"amd_iommu=on iommu=pt homelab.vfio=0000:01:00.0=10de:2b85,0000:01:00.1=10de:22e8 {BLACKLIST}"),
                moves("0000:01:00.0"), moves("0000:01:00.1"),
            ],
            "the kernel command line gets amd_iommu=on iommu=pt, and RTX 5090 goes to vfio-pci",
        ),
        ([moves("0000:01:00.1"), moves("0000:02:00.0")], "RTX 5090 and RTX 4090 go to vfio-pci"),
        ([loses("iommu=pt")], "the kernel command line loses iommu=pt"),
        ([loses("homelab.vfio=0000:01:00.0=10de:2b85"), loses(BLACKLIST)], "no card is for a VM any more"),
        (
            [gets("homelab.vfio=0000:02:00.0=10de:2b85"), loses("homelab.vfio=0000:01:00.0=10de:2b85"), moves("0000:02:00.0")],
            "RTX 4090 goes to vfio-pci",
        ),
        # A VM that runs has it already.
        (
            [gets("iommu=pt homelab.vfio=0000:01:00.0=10de:2b85,0000:02:00.0=10de:2684"), moves("0000:02:00.0")],
            "the kernel command line gets iommu=pt, RTX 4090 goes to vfio-pci, and RTX 5090 is bound to vfio-pci from the boot on",
        ),
        # It was bound before.
        (
            [gets("homelab.vfio=0000:01:00.0=10de:2b85,0000:02:00.0=10de:2684"), loses("homelab.vfio=0000:01:00.0=10de:2b85"),
             moves("0000:02:00.0")],
            "RTX 4090 goes to vfio-pci",
        ),
        ([moves("0000:02:00.0", "NVIDIA's driver")], "RTX 4090 goes to NVIDIA's driver"),
        ([moves("0000:09:00.0")], "0000:09:00.0 goes to vfio-pci"),
        ([Reason("NVIDIA's driver 580.82.07 is loaded, not 595")], "NVIDIA's driver 580.82.07 is loaded, not 595"),
        ([loses(BLACKLIST)], f"{BLACKLIST} is no longer wanted"),
        ([], ""),
    ],
)  # fmt: skip
def test_what_a_script_says_of_words_and_functions_is_said_of_cards(reasons: list[Reason], said: str) -> None:
    assert in_short(reasons, CARDS) == said


def test_two_cards_of_one_name_are_told_apart_by_their_places() -> None:
    twins = {"third": card("RTX 3090", "0000:1d:00.0"), "fourth": card("RTX 3090", "0000:1e:00.0"), **CARDS}
    reasons = [moves("0000:1d:00.0"), *(moves(one, "NVIDIA's driver") for one in ("0000:1e:00.0", "0000:02:00.0"))]
    said = "RTX 3090 at 0000:1d:00 goes to vfio-pci, and RTX 3090 at 0000:1e:00 and RTX 4090 go to NVIDIA's driver"
    assert in_short(reasons, twins) == said


A, B = Running("qm", 103, "a"), Running("pct", 950, "b), (c")


@pytest.mark.parametrize(
    ("planned", "again", "said"),
    [
        (Planned("yes", "1"), True, "it stops no running guest"),
        (Planned("yes", "1", guests=(A,)), True, "it stops VM 103 (a), and starts it again"),
        (
            Planned("yes", "1", guests=(A, B)),
            True,
            "it stops VM 103 (a), container 950 (b), (c), and starts them again",
        ),
        (Planned("yes", "1", guests=(B,)), True, "it stops container 950 (b), (c), and starts it again"),
        (Planned("yes", "1", guests=(A,)), False, "it stops VM 103 (a)"),
        (Planned("yes", "1", unlisted="whatever runs"), True, "it stops whatever runs, and starts them again"),
    ],
)
def test_what_becomes_of_the_guests_is_said(planned: Planned, again: bool, said: str) -> None:
    assert stopping(planned, again=again) == said


def test_what_an_earlier_version_has_answered_is_read() -> None:
    """It stands in the state, of a run that was killed before it saw the boot."""
    answer = answered(
        {"reboot": "yes", "boot_id": "1", "reasons": ["x"], "guests": "VM 103 (a)", "turn": False, "armed": ""}
    )
    assert (stopped(answer), in_short(answer.reasons, {})) == ("VM 103 (a)", "x")
