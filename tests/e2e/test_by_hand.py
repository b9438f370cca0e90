"""A host that somebody configured by hand: what is done is recognised, and only the rest is added.

One that has half of it, or is to be taken over: tests/scripts/test_on_a_host.py (`half-bound`, `bound-by-hand`).
"""

from __future__ import annotations

from collections.abc import Callable

from tests.e2e.conftest import Stack
from tests.e2e.test_gpu_vm import SANDBOX, conf, given_back, power_calls, with_card


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
    assert (stack.lab.boots(since=mark), power_calls(stack, mark)) == ([], [])
    assert with_card(stack)["0000:01:00.0"] == 103
    # Somebody takes the binding back: it is made by us from now on.
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
    mended = stack.up("--refresh")
    assert mended.found_changed == {"pve-probe"}, "the mapping and the VM are as they were found at first"
    assert stack.drivers()["0000:01:00.0"] == "vfio-pci"
    assert len(stack.lab.boots(since=mark)) == 1
    stack.destroy_as_left()
    given_back(stack, changed)
    assert "hostpci3: pcie=1,mapping=rtx5090" in conf(stack, 103) and power_calls(stack, mark) == []
