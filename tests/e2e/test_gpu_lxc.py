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


def test_901_goes_from_broken_to_working_to_another_assignment_is_mended_and_goes_back_with_950_untouched(
    converged: Callable[..., Stack],
) -> None:
    stack = converged("phoenix", gpus=CARDS, containers=PHOENIX, **NO_REBOOT)
    stock, up, media = stack.stock, stack.first, f"etc/pve/nodes/{stack.lab.api['node']}/lxc/950.conf"
    assert up
    for path in ("/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl", "/dev/nvidia-uvm"):
        assert opens(stack, 901, path)
        assert opens(stack, 901, path, NOBODY)
    for said in ("dev0: /dev/nvidia0,mode=0666", "shutting container 901 down", "opened in container 901"):
        assert said in up.output  # each step says what it did
    assert stack.lab.snapshot()[media] == stock[media]
    assert stack.container_power(950) == []
    assert stack.container_power(901) == ["shutdown", "start"]
    names = [name for operation, name in up.steps if operation == "create"]
    order = ["pve-nodes", "phoenix-probe", "phoenix-cards", "phoenix-opened"]
    assert [name for name in names if name in order] == order
    found = stack.output()["containers"]["phoenix"]
    assert (found["ctid"], found["gpus"], found["method"], found["state"]) == (901, [0, 1], "device", "running")

    another_assignment_is_written_then_restarted_then_verified(stack)
    what_was_changed_by_hand_or_by_a_kernel_is_mended(stack)

    stack.destroy()
    assert not opens(stack, 901, "/dev/nvidia1")
    assert stack.lab.snapshot() == stock


def another_assignment_is_written_then_restarted_then_verified(stack: Stack) -> None:
    """By the other method, too."""
    containers(stack)["phoenix"] |= {"gpuAssignment": "1", "method": "mount-entry"}
    mark = stack.lab.mark()
    up = stack.up("--refresh")
    assert up.found_changed == set(), f"the first `up` isn't what a refresh reads: {up.output}"
    order = ["phoenix-probe", "phoenix-cards", "phoenix-opened"]
    begun = [name for operation, name in up.planned if name in order and operation in ("update", "create-replacement")]
    assert begun == order
    ended = [name for operation, name in up.steps if name in order and operation in ("update", "create-replacement")]
    assert ended == order
    assert {name for operation, name in up.steps if "replace" in operation} == set(order[2:])
    assert stack.container_power(901, mark) == ["shutdown", "start"]
    assert not opens(stack, 901, "/dev/nvidia0")
    assert opens(stack, 901, "/dev/nvidia1", NOBODY)


def what_was_changed_by_hand_or_by_a_kernel_is_mended(stack: Stack) -> None:
    path = stack.lab.root / "etc/pve/lxc/901.conf"
    line = "lxc.mount.entry: /dev/nvidia1 dev/nvidia1 none bind,optional,create=file\n"
    assert line in path.read_text()
    path.write_text(path.read_text().replace(line, ""))
    (stack.lab.root / "etc/systemd/system/homelab-nvidia-nodes.service").unlink()
    up = stack.up("--refresh")
    assert f"drift: {line.strip()}: not there -> there" in up.output
    assert "homelab-nvidia-nodes.service is gone" in up.output
    assert up.changed == {"phoenix-cards", "phoenix-opened", "pve-nodes"}
    assert line in conf(stack, 901)
    assert opens(stack, 901, "/dev/nvidia1", NOBODY)
    assert (stack.lab.root / "etc/systemd/system/homelab-nvidia-nodes.service").exists()

    stack.lab.fault("nvidia-majors-change")
    stack.lab.reboot()
    # What runs at each boot has brought the rules to the numbers of this one.
    assert opens(stack, 901, "/dev/nvidia-uvm", NOBODY)
    assert stack.up("--refresh").changed <= {"phoenix-probe", "phoenix-opened"}
    assert opens(stack, 901, "/dev/nvidia-uvm", NOBODY)
    assert len([one for one in raw_lines(stack, 901) if "devices.allow" in one]) == len(set(raw_lines(stack, 901))) / 2


def raw_lines(stack: Stack, ctid: int) -> list[str]:
    return [line for line in conf(stack, ctid).splitlines() if line.startswith("lxc.")]
