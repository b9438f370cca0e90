"""Cards to containers: from broken to working, on both methods, mended, changed, given back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.e2e.conftest import Stack

PHOENIX = {"phoenix": {"ctid": 901, "gpuAssignment": "0,1"}}
# Without a card for a VM the host needs no IOMMU, and so no reboot.
NO_REBOOT = {"iommu": {"enable": False, "passthrough": False}}
CARDS: dict[str, Any] = {}


def conf(stack: Stack, ctid: int) -> str:
    return (stack.lab.root / f"etc/pve/lxc/{ctid}.conf").read_text()


def opens(stack: Stack, ctid: int, path: str, who: str = "") -> bool:
    """Whether root, or another user, can open a device in the container."""
    command = f"pct exec {ctid} -- {who} dd if={path} of={path} count=0 conv=notrunc"
    return stack.lab.run(command, check=False).returncode == 0


NOBODY = "setpriv --reuid 65534 --regid 65534 --clear-groups"


def containers(stack: Stack) -> dict[str, Any]:
    """The settings of the containers, to be changed."""
    found: dict[str, Any] = stack.config["homelab:containers"]
    return found


def power(stack: Stack, ctid: int, mark: Any = None) -> list[str]:
    """What was done to a container's power, in order."""
    programs = [entry["args"] for entry in stack.lab.programs(mark) if entry["program"] == "pct"]
    return [words[0] for words in programs if words[1:2] == [str(ctid)] and words[0] in ("shutdown", "stop", "start")]


def test_901_goes_from_broken_to_working_and_back_with_950_untouched(stack_on: Callable[..., Stack]) -> None:
    stack = stack_on("phoenix", gpus=CARDS, containers=PHOENIX, **NO_REBOOT)
    stock, before, working = stack.lab.snapshot(), conf(stack, 901), conf(stack, 950)
    assert not opens(stack, 901, "/dev/nvidia0")
    up = stack.up()
    for path in ("/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl", "/dev/nvidia-uvm"):
        assert opens(stack, 901, path)
        assert opens(stack, 901, path, NOBODY)
    assert conf(stack, 950) == working
    assert power(stack, 950) == []
    assert power(stack, 901) == ["shutdown", "start"]
    names = [name for operation, name in up.steps if operation == "create"]
    order = ["pve-nvidia-nodes-service", "phoenix-probe", "phoenix-conf", "phoenix-restart", "phoenix-verification"]
    assert [name for name in names if name in order] == order
    found = stack.output()["containers"]["phoenix"]
    assert (found["ctid"], found["gpus"], found["method"], found["state"]) == (901, [0, 1], "device", "running")

    again = stack.up()
    assert again.changed == set()
    mark = stack.lab.mark()
    assert stack.up("--refresh").changed == set()
    assert len(stack.lab.connections(mark)) == 1

    stack.destroy()
    assert not opens(stack, 901, "/dev/nvidia0")
    assert conf(stack, 901) == before
    assert stack.lab.snapshot() == stock
