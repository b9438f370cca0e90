"""`pulumi up` at a terminal of 80 columns: what a person can read there."""

from __future__ import annotations

from collections.abc import Callable

from tests.e2e import terminal
from tests.e2e.conftest import Stack
from tests.waiting import PATIENCE

VMS = {"sandbox": {"vmid": 103, "gpus": ["rtx5090"]}}


def shown(stack: Stack, columns: int) -> terminal.Terminal:
    environment = {name: value for name, value in stack.environment.items() if name != "NO_COLOR"}
    command = [str(stack.engine.pulumi), "up", "--yes", "--skip-preview", "--stack", "lab", "--cwd", str(stack.project)]
    command += ["--config-file", str(stack.folder / "Pulumi.lab.yaml")]
    stack.write_config()
    return terminal.run(command, columns, environment | {"TERM": "xterm-256color"}, str(stack.folder), PATIENCE)


def test_a_first_up_can_be_read_at_80_columns(stack_on: Callable[..., Stack]) -> None:
    stack = stack_on("rtx5090", vms=VMS)

    first = shown(stack, 80)
    assert ("homelab:host:BootCheck", "pve-booted") in terminal.readable(first)
    # While it is at work, the beginning of what a step says is there.
    said = terminal.said_meanwhile(first, "homelab:vm:Change")
    assert {one.split()[-1] for one in said if one.startswith("creating (") and not one.endswith(")")}, said
    # Why it is rebooted is said once, in words.
    text = " ".join(line.strip() for line in first.lines())
    assert text.count("the kernel command line gets amd_iommu=on iommu=pt") == 1
    assert "homelab.vfio=" not in text.partition("Outputs:")[0] and text.count("it stops VM 103 (Sandbox)") <= 2
