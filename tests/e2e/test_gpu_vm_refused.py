"""What stands against a change of a VM: it is named with its remedy, the VM is as it was, and the next `up` goes on.

Each obstacle by itself, without the engine: tests/unit/test_vm_plan.py, tests/lab/test_vm_refusals.py.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.e2e.conftest import Result, Stack, name_of
from tests.e2e.test_gpu_vm import conf, running, second_vm, with_card


def refused(stack: Stack, *said: str) -> Result:
    """An `up` that ends with one message, which has these texts; VM 103 is as it was."""
    before, ran = conf(stack, 103), running(stack)
    result = stack.up(ok=False)
    for text in (*said, "wanted: ", "next:   "):
        assert text in result.message, result.message
    assert (conf(stack, 103), running(stack) - {104}) == (before, ran - {104})
    return result


def test_it_is_said_and_the_vm_is_as_it_was(converged: Callable[..., Stack]) -> None:
    stack = converged("bound-by-hand", vms={})
    second_vm(stack)
    stack.config["homelab:vms"] = {"sandbox": {"host": "pve", "vmid": 103, "gpus": ["rtx5090"]}}
    # Before anything is recorded: another VM runs with the card.
    stack.lab.run("qm set 104 --hostpci0 mapping=rtx5090,pcie=1; qm start 104")
    refused(stack, "VM 104 (gaming) runs with it", "qm shutdown 104")
    stack.lab.run("qm shutdown 104")
    # A small VM that is to prove the card doesn't see all of it.
    stack.host["gpus"]["rtx5090"]["passthroughTest"] = True
    stack.lab.fault("card-invisible", "0000:01:00.1")
    refused(stack, "0000:01:00.1")
    stack.lab.fault("card-invisible", None)
    # While it is changed: the state has the resource by now, though nothing was finished.
    stack.config["homelab:vms"]["sandbox"]["shutdown"] = {"timeout": 1}
    stack.lab.fault("guest-ignores-shutdown", 103)
    stays_on = refused(
        stack, "it is still on", "shutdown.otherwise: stop", "not finished; what is known of it is kept in the state:"
    )
    assert stays_on.message.count("wanted: ") == 1
    (cards,) = (one for one in stack.resources() if name_of(one["urn"]) == "sandbox-cards")
    assert cards["outputs"]["drift"] == ["the last run didn't finish with it"] and not cards["outputs"]["state"]
    proved_by_a_small_vm(stack, cards["dependencies"])
    stack.config["homelab:vms"]["sandbox"]["shutdown"]["otherwise"] = "stop"
    stack.up()
    assert with_card(stack)["0000:01:00.0"] == 103
    seen = stack.output()["hosts"]["pve"]["gpus"]["rtx5090"]["test"]["functions"]
    assert [(one["address"], one["id"]) for one in seen] == [
        ("0000:01:00.0", "10de:2b85"),
        ("0000:01:00.1", "10de:22e8"),
    ]
    assert {"index": 1, "size": 32 << 30} in seen[0]["bars"]


def proved_by_a_small_vm(stack: Stack, before: list[str]) -> None:
    """Before anything is noted of the VM that gets it; nothing is left of the small one."""
    assert "pve-rtx5090-test" in map(name_of, before)
    assert sorted(path.name for path in (stack.lab.root / "etc/pve/qemu-server").iterdir()) == ["103.conf", "104.conf"]
    (test,) = (one for one in stack.resources() if name_of(one["urn"]) == "pve-rtx5090-test")
    # A reboot that brings the VM back with its card needs no other proof: it asks for one where the card is another.
    assert test["inputs"]["triggers"] == [{"0000:01:00.0": "10de:2b85", "0000:01:00.1": "10de:22e8"}]
