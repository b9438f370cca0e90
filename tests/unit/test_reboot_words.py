"""Why a host is rebooted, in a few plain words: nobody has to read a kernel command line to know what happens to the server."""

from __future__ import annotations

from typing import Any

import pytest

from homelab.host.reboot import in_short, stopping
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


@rows(
    ("reasons", "said"),
    [
        (
            [
                f"amd_iommu=on iommu=pt homelab.vfio=0000:01:00.0=10de:2b85,0000:01:00.1=10de:22e8 {BLACKLIST} is not on the running kernel's "
                "command line",
                "0000:01:00.0 is on nouveau, not on vfio-pci",
                "0000:01:00.1 is on snd_hda_intel, not on vfio-pci",
            ],
            "the kernel command line gets amd_iommu=on iommu=pt, and RTX 5090 goes to vfio-pci",
        ),
        (
            ["0000:01:00.1 is on no driver, not on vfio-pci", "0000:02:00.0 is on nouveau, not on vfio-pci"],
            "RTX 5090 and RTX 4090 go to vfio-pci",
        ),
        (["iommu=pt is no longer wanted"], "the kernel command line loses iommu=pt"),
        (
            ["homelab.vfio=0000:01:00.0=10de:2b85 is no longer wanted", f"{BLACKLIST} is no longer wanted"],
            "no card is for a VM any more",
        ),
        (
            [
                "homelab.vfio=0000:02:00.0=10de:2b85 is not on the running kernel's command line",
                "homelab.vfio=0000:01:00.0=10de:2b85 is no longer wanted",
                "0000:02:00.0 is on nouveau, not on vfio-pci",
            ],
            "RTX 4090 goes to vfio-pci",
        ),
        (  # a VM that runs has it already
            [
                "iommu=pt homelab.vfio=0000:01:00.0=10de:2b85,0000:02:00.0=10de:2684 is not on the running kernel's command line",
                "0000:02:00.0 is on nouveau, not on vfio-pci",
            ],
            "the kernel command line gets iommu=pt, RTX 4090 goes to vfio-pci, and RTX 5090 is bound to vfio-pci from the boot on",
        ),
        (["0000:02:00.0 is on nouveau, not on NVIDIA's driver"], "RTX 4090 goes to NVIDIA's driver"),
        (["0000:09:00.0 is on nouveau, not on vfio-pci"], "0000:09:00.0 goes to vfio-pci"),
        (["NVIDIA's driver 580.82.07 is loaded, not 595"], "NVIDIA's driver 580.82.07 is loaded, not 595"),
        (
            [f"{BLACKLIST} is no longer wanted"],
            f"{BLACKLIST} is no longer wanted",
        ),
        ([], ""),
    ],
)  # fmt: skip
def test_what_a_script_says_of_words_and_functions_is_said_of_cards(reasons: list[str], said: str) -> None:
    assert in_short(reasons, CARDS) == said


def test_two_cards_of_one_name_are_told_apart_by_their_places() -> None:
    twins = {"third": card("RTX 3090", "0000:1d:00.0"), "fourth": card("RTX 3090", "0000:1e:00.0"), **CARDS}
    reasons = [
        "0000:1d:00.0 is on nvidia, not on vfio-pci",
        "0000:1e:00.0 is on nouveau, not on NVIDIA's driver",
        "0000:02:00.0 is on nouveau, not on NVIDIA's driver",
    ]
    said = "RTX 3090 at 0000:1d:00 goes to vfio-pci, and RTX 3090 at 0000:1e:00 and RTX 4090 go to NVIDIA's driver"
    assert in_short(reasons, twins) == said


@pytest.mark.parametrize(
    ("guests", "again", "said"),
    [
        ("", True, "it stops no running guest"),
        ("VM 103 (a)", True, "it stops VM 103 (a), and starts it again"),
        ("VM 103 (a), container 950 (b)", True, "it stops VM 103 (a), container 950 (b), and starts them again"),
        ("VM 103 (a)", False, "it stops VM 103 (a)"),
    ],
)
def test_what_becomes_of_the_guests_is_said(guests: str, again: bool, said: str) -> None:
    assert stopping(guests, again=again) == said
