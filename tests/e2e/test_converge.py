"""A host converges, stays, and is given back, in every scenario: both boot loaders, both CPU vendors, every kind of card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import Lab
from tests.e2e.conftest import Stack, gpus_of

# Scenario, the slot that must be on vfio-pci afterwards.
SCENARIOS = {
    "rtx5090": "0000:01:00",
    "wtr-max": "0000:01:00",
    "intel-zfs": "0000:01:00",
    "two-identical": "0000:1e:00",
    "four-functions": "0000:01:00",
    "phoenix": "0000:02:00",
    "intel-grub-bios": "0000:03:00",
    "zfs-grub-shim": "0000:01:00",
    "iommu-off": "0000:03:00",
}
# Cards for a VM where the scenario's own stack gives them to containers.
GPUS = {"phoenix": {"rtx4090": {"match": "10de:2684", "allowContainers": [901, 950]}}}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_from_stock_to_bound_and_back(stack_on: Callable[..., Stack], scenario: str) -> None:
    stack = stack_on(scenario, GPUS.get(scenario))
    stock = stack.lab.snapshot()
    before = stack.drivers()
    mark = stack.lab.mark()

    stack.up()

    bound = {address for address, driver in stack.drivers().items() if driver == "vfio-pci"}
    assert bound == {address for address in before if address.startswith(SCENARIOS[scenario])}
    others = {address: driver for address, driver in stack.drivers().items() if address not in bound}
    assert others == {address: before[address] for address in others}
    assert [boot["reason"] for boot in stack.lab.boots(since=mark)] == ["reboot"]
    assert len(stack.lab.connections(since=mark)) <= len(stack.lab.commands(since=mark))
    output = stack.output()["hosts"]["pve"]
    functions = [function for gpu in output["gpus"].values() for function in gpu["functions"]]
    assert {function["address"] for function in functions} == bound
    assert {function["driver"] for function in functions} == {"vfio-pci"}
    assert output["iommu"]["groups"] > 0

    assert output["iommu"]["kernelLog"] == []

    mark = stack.lab.mark()
    refreshed = stack.up("--refresh")
    assert refreshed.changed == set()
    assert len(stack.lab.connections(since=mark)) == 1

    assert [one for one in stack.lab.programs(since=mark) if one["program"] not in ("ip", "lspci", "qm", "pct")] == []

    gone = stack.destroy()
    assert "the running kernel keeps the old command line" in gone.output
    assert stack.lab.snapshot() == stock
    assert not (stack.lab.root / "var/lib/homelab").exists()
    assert stack.drivers()[min(bound)] == "vfio-pci"  # until a reboot, as it said
    stack.lab.reboot()
    assert stack.drivers() == before


def test_an_up_with_its_preview_after_a_refresh_changes_nothing_and_knows_every_output(
    converged: Callable[..., Stack],
) -> None:
    stack = converged("rtx5090")
    stack.up("--refresh")
    mark = stack.lab.mark()
    again = stack.run("up", "--yes")
    assert (again.code, again.changed) == (0, set())
    previewed = again.output.partition("Updating (lab)")[0]
    assert "Outputs:" not in previewed and "unknown" not in previewed, again.output
    assert stack.lab.connections(since=mark) == []


def test_the_steps_happen_in_the_order_of_their_dependencies(converged: Callable[..., Stack]) -> None:
    stack = converged("rtx5090")
    chain = [
        "pve-probe",
        "pve-cmdline",
        "pve-initrd",
        "pve-bind",
        "pve-reboot",
        "pve-booted",
    ]
    up = stack.first
    assert up and [name for _, name in up.steps if name in chain] == chain
    # Once the boot is confirmed, nothing is left of what would have taken it back.
    assert not list((stack.lab.root / "etc/systemd/system").rglob("homelab-rollback*"))
    assert not [timer for timer in stack.lab.timers() if "homelab" in json.dumps(timer)]
    # What the reboot stops is said before anything is changed.
    texts = [json.dumps(event) for event in up.events]
    said = next(number for number, text in enumerate(texts) if "it stops VM 103 (Sandbox)" in text)
    changed = next(number for number, text in enumerate(texts) if "resourcePreEvent" in text and "pve-cmdline" in text)
    assert said < changed
    taken = [name for operation, name in stack.destroy().steps if operation == "delete" and name in chain]
    assert taken == chain[::-1]


@pytest.mark.parametrize("scenario", ["rtx5090", "intel-zfs"])
def test_the_second_boot_entry_gives_the_card_back_for_one_boot_and_a_new_kernel_is_bound(
    converged: Callable[..., Stack], scenario: str
) -> None:
    """With either loader."""
    stack = converged(scenario)
    bound = stack.drivers()
    stack.reboot_without_passthrough()
    assert stack.drivers() == bound | {"0000:01:00.0": "nouveau", "0000:01:00.1": "snd_hda_intel"}
    stack.lab.reboot()
    assert stack.drivers() == bound
    version = "6.17.13-21-pve"
    stack.lab.machine.install_kernel(version)
    stack.lab.reboot()
    assert stack.lab.boots()[-1]["kernel"] == version
    assert stack.drivers()["0000:01:00.0"] == "vfio-pci"


def test_two_hosts_in_one_stack_do_not_wait_for_each_other(stack_on: Callable[..., Stack], tmp_path: Path) -> None:
    stack = stack_on("rtx5090")
    with Lab.start("intel-zfs", state=tmp_path / "second") as second:
        ssh = {name: second.connection[name] for name in ("port", "hostKey", "privateKeyFile")}
        stack.config["homelab:hosts"]["second"] = stack.host | {"ssh": ssh, "gpus": gpus_of("intel-zfs")}
        stock = second.snapshot()
        mark = second.mark()
        stack.up()
        assert stack.drivers()["0000:01:00.0"] == "vfio-pci"
        assert [boot["reason"] for boot in second.boots(since=mark)] == ["reboot"]
        assert set(stack.output()["hosts"]) == {"pve", "second"}
        # One host given up: the other is left in peace.
        del stack.config["homelab:hosts"]["second"]
        mark = stack.lab.mark()
        stack.up()
        assert second.snapshot() == stock
        assert stack.lab.connections(since=mark) == []
