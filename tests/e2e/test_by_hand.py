"""Hosts that somebody configured by hand: what is done is recognised, and only the rest is added."""

from __future__ import annotations

from collections.abc import Callable

from tests.e2e.conftest import Stack
from tests.e2e.person import ENTER
from tests.e2e.test_converge import NOTHING_INSIDE
from tests.e2e.test_gpu_vm import given_back, with_card


def test_a_host_that_has_it_all_is_left_alone(stack_on: Callable[..., Stack]) -> None:
    stack = stack_on("bound-by-hand")
    before, mark = stack.lab.snapshot(), stack.lab.mark()
    stack.up()
    assert stack.lab.snapshot() == before
    assert stack.lab.boots(since=mark) == []
    assert stack.up("--refresh").changed == set()
    # Somebody takes the binding back: it is made by us from now on. (A destroy before that: test_what_is_done_by_hand_stays.)
    stack.lab.run(
        """
rm "$ROOT"/etc/modprobe.d/vfio*.conf
sed -i 's/vfio-pci.ids=[^ "]*//' "$ROOT/etc/default/grub"
update-initramfs -u -k all; update-grub
"""
    )
    stack.lab.reboot()
    assert stack.drivers()["0000:01:00.0"] != "vfio-pci"
    changed, mark = stack.lab.snapshot(), stack.lab.mark()
    stack.up("--refresh")
    assert stack.drivers()["0000:01:00.0"] == "vfio-pci"
    assert len(stack.lab.boots(since=mark)) == 1
    assert stack.up("--refresh").changed == set()
    stack.destroy()
    given_back(stack, changed)


def test_it_is_taken_over_only_when_asked(by_init: Callable[..., Stack]) -> None:
    cards = [("What is rtx5090", ENTER), ("What is radeon-graphics", ENTER), NOTHING_INSIDE]
    stack = by_init("bound-by-hand", *cards, options=["--set", "hosts.pve.takeOver=true"])
    before = stack.lab.snapshot()
    stack.up()
    assert "homelab.vfio=0000:01:00.0=10de:2b85" in (stack.lab.root / "proc/cmdline").read_text()
    assert with_card(stack)["0000:01:00.0"] == 103
    stack.destroy()
    given_back(stack, before)


def test_a_host_that_has_half_of_it_gets_the_rest(by_init: Callable[..., Stack]) -> None:
    """As on a real host with a forgotten audio function: the ids name the card only; the IOMMU words are there."""
    stack = by_init("half-bound", ("What is rtx5060-ti", ENTER), ("What is hawkpoint1", ENTER), NOTHING_INSIDE)
    before, mark = stack.lab.snapshot(), stack.lab.mark()
    stack.up()
    files = set(stack.lab.snapshot()) - set(before)
    assert not any("zz-homelab-iommu" in path for path in files)
    running = (stack.lab.root / "proc/cmdline").read_text()
    assert "homelab.vfio=0000:01:00.1=10de:22eb" in running
    assert running.split().count("amd_iommu=on") == 1
    assert {stack.drivers()[f"0000:01:00.{number}"] for number in (0, 1)} == {"vfio-pci"}
    assert len(stack.lab.boots(since=mark)) == 1
    assert with_card(stack)["0000:01:00.0"] == 103
    stack.destroy()
    given_back(stack, before)
