"""A host that somebody configured by hand: what is done is recognised, and only the rest is added.

One that has half of it, or is to be taken over: tests/lab/test_bound_hosts.py (`half-bound`, `bound-by-hand`). What may come in between when a VM's lines are
taken over: tests/lab/test_vm_transaction.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.conftest import Stack
from tests.e2e.person import ENTER
from tests.e2e.test_gpu_vm import SANDBOX, conf, given_back, with_card
from tests.lab.test_recipes import CARD, PROXMENUX, SOUND, below_the_root


@pytest.mark.one_of("hosts that somebody has set up")
def test_a_host_that_has_it_all_is_left_alone(stack_on: Callable[..., Stack]) -> None:
    """The card is given to its VM by the same mapping already, too: nothing is ours, and nothing is taken away."""
    stack = stack_on("bound-by-hand", vms=SANDBOX)
    entry = "id=10de:2b85,iommugroup=14,node=pve,path=0000:01:00,subsystem-id=1043:89e3"
    stack.lab.run(
        f"pvesh create /cluster/mapping/pci --id rtx5090 --map {entry}; "
        "qm stop 103; qm set 103 --onboot 0 --hostpci3 pcie=1,mapping=rtx5090; qm start 103"
    )
    before, mark = stack.lab.snapshot(), stack.lab.mark()
    stack.up()
    assert stack.lab.snapshot() == before
    assert (stack.lab.boots(since=mark), stack.power_calls(mark)) == ([], [])
    assert with_card(stack)["0000:01:00.0"] == 103
    stack.destroy_as_left()
    given_back(stack, before)
    assert "hostpci3: pcie=1,mapping=rtx5090" in conf(stack, 103) and stack.power_calls(mark) == []


@pytest.mark.one_of("hosts that somebody has set up")
def test_a_host_that_proxmenux_has_set_up_is_taken_over_and_left_as_it_was(by_init: Callable[..., Stack]) -> None:
    """A rule of udev's for each function, blacklists, a line of the VM's for each function, and options that hide KVM. With a yes of its owner's."""
    hidden = (
        "--cpu host,hidden=1,flags=+pcid --args \"-cpu 'host,+kvm_pv_unhalt,+kvm_pv_eoi,hv_vendor_id=NV43FIX,kvm=off'\""
    )
    card = f"hostpci0: {CARD},pcie=1,x-vga=1,romfile=5090.rom"
    of_vm = f"qm stop 103; qm set 103 --{card.replace(': ', ' ')} --hostpci1 {SOUND},pcie=1 {hidden} --vga std; qm start 103"
    stack = by_init("rtx5090", ("rtx5090: ", ENTER), first=f"{below_the_root(PROXMENUX)}{of_vm}")
    assert stack.config["homelab:vms"]["sandbox"]["gpus"] == [{"gpu": "rtx5090", "takeOver": True}]
    stock, before, mark = stack.lab.snapshot(), conf(stack, 103), stack.lab.mark()
    given = stack.config["homelab:vms"]["sandbox"]
    given["gpus"] = ["rtx5090"]
    refused = stack.preview(ok=False).output
    assert f"{card}, set by hand" in refused and "takeOver: true" in refused and "--delete" not in refused
    given["gpus"] = [{"gpu": "rtx5090", "takeOver": True}]
    shown = stack.preview().output
    ours = "mapping=rtx5090,pcie=1,x-vga=1,romfile=5090.rom"
    assert f" {card} -> {ours}" in shown and f" hostpci1: {SOUND},pcie=1 -> not there" in shown
    assert "put back as it is on destroy" in shown
    assert (conf(stack, 103), stack.power_calls(mark)) == (before, [])
    stack.up()
    assert f"hostpci0: {ours}\n" in conf(stack, 103) and "hostpci1" not in conf(stack, 103)
    assert with_card(stack) == dict.fromkeys((CARD, SOUND), 103)
    stack.destroy_as_left()
    assert conf(stack, 103) == before
    given_back(stack, stock)
    stack.lab.reboot()
    assert with_card(stack) == dict.fromkeys((CARD, SOUND), 103), "as its owner has had it"
