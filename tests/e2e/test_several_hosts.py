"""Several hosts in one stack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import Lab
from tests.e2e.conftest import Stack, out_of_reach
from tests.e2e.test_gpu_vm import MAPPING, SANDBOX, vms, with_card
from tests.engine_stack import name_of
from tests.lab.stack_kit import host_settings


@pytest.fixture
def second(tmp_path: Path) -> Iterator[Lab]:
    """Another host."""
    lab = Lab.start("bound-by-hand", state=tmp_path / "second")
    yield lab
    lab.stop()


def test_two_hosts_in_one_stack_and_one_after_the_other_gone(stack_on: Callable[..., Stack], second: Lab) -> None:
    stack = stack_on("bound-by-hand", vms=SANDBOX)
    second_stock = second.snapshot()
    gpus = {"rtx5090": {"match": "10de:2b85"}}
    hosts = stack.config["homelab:hosts"]
    hosts["second"] = {**host_settings(second), "gpus": gpus}
    vms(stack)["other"] = {"host": "second", "vmid": 999, "gpus": ["rtx5090"]}
    # What one of them refuses keeps an `up`, which no preview came before, from changing the other.
    stock = stack.lab.snapshot()
    second.fault("api-seconds", 2)  # the other is known to be fit long before
    refused = stack.up(ok=False)
    second.fault("api-seconds", 0)
    assert "no such VM on the host" in refused.message and stack.lab.snapshot() == stock
    vms(stack)["other"]["vmid"] = 103
    stack.up()
    assert with_card(stack)["0000:01:00.0"] == 103
    assert "0000:01:00.0 103" in (second.root / "run/qemu-server/pci-id-reservations").read_text()
    outputs = stack.output()
    assert outputs["hosts"]["second"]["gpus"]["rtx5090"]["holder"] == "other"
    assert outputs["vms"]["other"]["host"] == "second"
    assert outputs["vms"]["other"]["state"] == "running"
    # Whoever forgets one that is gone (`pulumi state delete --target-dependents`) keeps the other.
    needing = {
        name_of(resource["urn"])
        for resource in stack.resources()
        if "second-probe" in map(name_of, resource.get("dependencies", []))
    }
    assert needing and not [name for name in needing if not name.startswith(("second", "other"))]

    # One host out of reach doesn't keep the other from being changed.
    vms(stack)["sandbox"]["gpus"] = []
    second.stop()
    stack.up()
    assert with_card(stack) == {}
    Lab.start("bound-by-hand", state=second.state, outlives_caller=True)
    # That host given up, as is said to whoever takes it out at once: the other is left in peace.
    mark = stack.lab.mark()
    kept = hosts.pop("second"), vms(stack).pop("other")
    said = stack.up(ok=False).message
    assert "first take its cards, VMs and containers out, and run `pulumi up`" in said, said
    hosts["second"] = {**kept[0], "gpus": {}}
    stack.up()
    del hosts["second"]
    stack.up()
    assert stack.lab.connections(since=mark) == []
    now = second.snapshot()
    assert (second.root / MAPPING).read_text() == ""
    del now[MAPPING]
    assert now == second_stock

    # The other one, gone for good, is forgotten by one command: what is left are components, which nobody needs to be asked for.
    out_of_reach(stack.lab)
    assert stack.destroy(ok=False).message
    probe = next(urn for urn in stack.urns() if name_of(urn) == "pve-probe")
    assert stack.run("state", "delete", probe, "--target-dependents", "--yes").code == 0
    stack.destroy()
    assert stack.urns() == []
