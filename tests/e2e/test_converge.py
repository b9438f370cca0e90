"""A host converges, stays, and is given back. Which hosts there are, is shown without the engine: tests/lab/test_bound_hosts.py."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import pytest

from tests.e2e.conftest import Stack
from tests.e2e.terminal import Terminal, readable, said_meanwhile
from tests.e2e.test_gpu_vm import conf, given_back, undone_of, with_card


def test_from_stock_to_bound_and_back(stack_on: Callable[..., Stack], subtests: pytest.Subtests) -> None:
    """By an `up` that can be read at a terminal. With systemd-boot; GRUB has it in the other tests. From `homelab init` on: tests/e2e/test_init.py. What other hosts are bound by: tests/lab/test_bound_hosts.py (test_a_host_is_bound_by_what_is_planned_for_it_and_given_back)."""
    stack = stack_on("intel-zfs", vms={"sandbox": {"vmid": 103, "gpus": ["rtx4070"]}})
    stock = stack.lab.snapshot()
    before = stack.machine.drivers()
    mark = stack.lab.mark()

    # A first `up` at a terminal of 80 columns, as a person sees it.
    environment = {name: value for name, value in stack.environment.items() if name != "NO_COLOR"}
    command = [str(stack.engine.pulumi), "up", "--yes", "--skip-preview", "--stack", "lab", "--cwd", str(stack.project)]
    command += ["--config-file", str(stack.folder / "Pulumi.lab.yaml")]
    stack.write_config()
    shown = Terminal(command, 80, environment | {"TERM": "xterm-256color"}, stack.folder, keeps=True)
    shown.answer()
    with subtests.test("what a person sees at a terminal"):
        assert ("homelab:host:BootCheck", "pve-booted") in readable(shown)
        # While it is at work, the beginning of what a step says is there.
        said = said_meanwhile(shown, "homelab:vm:Cards")
        assert {one.split()[-1] for one in said if one.startswith("creating (") and not one.endswith(")")}, said
        # Why it is rebooted is said once, in words; the terminal's edge may be in the middle of one.
        text = "".join("".join(shown.lines()).split())
        assert text.count("thekernelcommandlinegetsintel_iommu=oniommu=pt") == 1, text
        assert "homelab.vfio=" not in text.partition("Outputs:")[0] and text.count("itstopsVM103(Sandbox)") <= 2

    bound = {address for address, driver in stack.machine.drivers().items() if driver == "vfio-pci"}
    with subtests.test("what is bound"):
        assert bound == {address for address in before if address.startswith("0000:01:00")}
        others = {address: driver for address, driver in stack.machine.drivers().items() if address not in bound}
        assert others == {address: before[address] for address in others}
        assert [boot["reason"] for boot in stack.lab.boots(since=mark)] == ["reboot"]
    with subtests.test("connections and programs"):
        asked = Counter(entry["connection"] for entry in stack.lab.commands(since=mark))
        # Of the provider's own, each for many requests: pulumi-command has one for each of its steps.
        assert len([one for one in asked.values() if one > 1]) == 2, "one before the restart, and one after it"
        made = [entry["program"] for entry in stack.lab.programs(since=mark)]
        assert (made.count("update-initramfs"), made.count("update-grub")) == (1, 0)
    with subtests.test("the VM and the outputs"):
        # The VM has the card; one that was off stays so.
        (vm,) = stack.config["homelab:vms"].values()
        assert "hostpci0: mapping=" in conf(stack, vm["vmid"])
        assert with_card(stack) == dict.fromkeys(bound, vm["vmid"])
        (output,) = stack.output()["hosts"].values()
        functions = [function for gpu in output["gpus"].values() for function in gpu["functions"]]
        assert {function["address"] for function in functions} == bound
        assert {function["driver"] for function in functions} == {"vfio-pci"}
        assert output["iommu"]["groups"] > 0

        assert output["iommu"]["kernelLog"] == []

    mark = stack.lab.mark()
    refreshed = stack.up("--refresh")
    with subtests.test("a second run has nothing to do"):
        assert refreshed.changed == set()
        assert len(stack.lab.connections(since=mark)) == 1
        assert [
            one for one in stack.lab.programs(since=mark) if one["program"] not in ("ip", "lspci", "qm", "pct")
        ] == []

    # What `homelab show --undo` lists is what a `destroy` then changes.
    undone = undone_of(stack)
    listed, kept = set(re.findall(r"(?:removes|rebuilds) /(etc\S+)", undone)), stack.lab.snapshot()
    with subtests.test("what a destroy would do"):
        assert "VM 103 (Sandbox), running: it is shut down and started again\n    hostpci0: mapping=" in undone
        assert "  removes the PCI mapping rtx4070, unless" in undone
    gone = stack.destroy()
    with subtests.test("what a destroy has done, and said"):
        times = [gone.output.count(text) for text in ("the running kernel keeps", "stack rm --preserve-config")]
        assert times == [2, 2], "when it happens, and at the end"
        left = stack.lab.snapshot()
        assert listed == {
            path for path in kept if path.startswith("etc/") and "etc/pve/" not in path and path not in left
        }
    with subtests.test("all is given back"):
        given_back(stack, stock)
        assert not (stack.lab.root / "var/lib/homelab").exists()
        assert stack.machine.drivers()[min(bound)] == "vfio-pci"  # until a reboot, as it said
    stack.lab.reboot()
    assert stack.machine.drivers() == before
