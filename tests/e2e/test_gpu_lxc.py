"""Cards to containers: from broken to working, on both methods, mended, changed, given back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.conftest import Stack, refusal

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


def test_901_goes_from_broken_to_working_to_another_assignment_past_what_stands_against_it_is_mended_and_goes_back_with_950_untouched(
    converged: Callable[..., Stack], subtests: pytest.Subtests
) -> None:
    stack = converged("phoenix", gpus=CARDS, containers=PHOENIX, **NO_REBOOT)
    stock, up, media = stack.stock, stack.first, f"etc/pve/nodes/{stack.lab.api['node']}/lxc/950.conf"
    assert up
    with subtests.test("each device opens, for users, too"):
        for path in ("/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl", "/dev/nvidia-uvm"):
            assert opens(stack, 901, path)
            assert opens(stack, 901, path, NOBODY)
    with subtests.test("each step says what it did"):
        for said in ("dev0: /dev/nvidia0,mode=0666", "shutting container 901 down", "opened in container 901"):
            assert said in up.output  # each step says what it did
    with subtests.test("one restart, and the other container untouched"):
        assert stack.lab.snapshot()[media] == stock[media]
        assert stack.power_calls() == ["901 shutdown", "901 start"]
    with subtests.test("the order of the steps"):
        names = [name for operation, name in up.steps if operation == "create"]
        order = ["pve-nodes", "phoenix-probe", "phoenix-cards", "phoenix-opened"]
        assert [name for name in names if name in order] == order
    with subtests.test("outputs"):
        found = stack.output()["containers"]["phoenix"]
        assert (found["ctid"], found["gpus"], found["method"], found["state"]) == (901, [0, 1], "device", "running")

    # Another assignment, by the other method, is written, then the container restarted, then verified.
    containers(stack)["phoenix"] |= {"gpuAssignment": "1", "method": "mount-entry"}
    mark = stack.lab.mark()
    up = stack.up("--refresh")
    with subtests.test("a refresh finds nothing"):
        assert up.found_changed == set(), f"the first `up` isn't what a refresh reads: {up.output}"
    with subtests.test("another assignment: the order of the steps"):
        order = ["phoenix-probe", "phoenix-cards", "phoenix-opened"]
        begun = [
            name for operation, name in up.planned if name in order and operation in ("update", "create-replacement")
        ]
        assert begun == order
        ended = [
            name for operation, name in up.steps if name in order and operation in ("update", "create-replacement")
        ]
        assert ended == order
        assert {name for operation, name in up.steps if "replace" in operation} == set(order[2:])
    with subtests.test("another assignment: one restart"):
        assert stack.power_calls(mark) == ["901 shutdown", "901 start"]
        assert not opens(stack, 901, "/dev/nvidia0")
        assert opens(stack, 901, "/dev/nvidia1", NOBODY)

    # What stands against a card is said with the configuration as it was. Each obstacle that its host tells of, without the engine:
    # tests/unit/test_containers.py, tests/lab/test_container_hosts.py.
    wanted = containers(stack)["phoenix"]
    wanted["ctid"] = 999
    refused = refusal(stack)
    with subtests.test("no such container"):
        assert "container 999, to be adopted as containers.phoenix" in refused
        assert "901 (ai-lab), 950 (media)" in refused
    wanted["ctid"] = 901

    # Its host's side isn't there: NVIDIA's software isn't installed in it either.
    stack.lab.run("pct stop 901; pct stop 950; rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia")
    wanted["nvidia"] = {"cuda": "12.8"}
    refused = refusal(stack)
    with subtests.test("no driver on the host"):
        assert "NVIDIA's driver loaded on the host, for containers.phoenix" in refused
        assert "the driver is installed and not loaded" in refused and "`modprobe nvidia`" in refused
    stack.lab.run(
        "modprobe nvidia; modprobe nvidia_drm; modprobe nvidia_uvm; nvidia-modprobe -u -m -c 0; pct start 901; pct start 950"
    )
    del wanted["nvidia"]

    # A device that somebody wanted read only is theirs, and left as it is. One that won't shut down: tests/lab/test_guest_transaction.py.
    wanted["gpuAssignment"] = "0,1"
    stack.lab.run("pct set 901 --dev0 /dev/nvidia0,deny-write=1")
    message = stack.up(ok=False).message
    with subtests.test("a device that its owner has read only"):
        assert "devices that can be opened in container 901" in message
        assert "control group" in message
        assert "/dev/nvidia0" in message and "`homelab doctor container 901`" in message
    stack.lab.run("pct set 901 --delete dev0")

    # What runs at each boot has brought the rules to the numbers of this one.
    stack.lab.fault("nvidia-majors-change")
    stack.lab.reboot()
    with subtests.test("after a boot with other numbers"):
        assert opens(stack, 901, "/dev/nvidia-uvm", NOBODY)
    # What was changed by hand or by a kernel is mended.
    file = stack.lab.root / "etc/pve/lxc/901.conf"
    line = "lxc.mount.entry: /dev/nvidia1 dev/nvidia1 none bind,optional,create=file\n"
    assert line in file.read_text()
    file.write_text(file.read_text().replace(line, ""))
    (stack.lab.root / "etc/systemd/system/homelab-nvidia-nodes.service").unlink()
    up = stack.up("--refresh")
    with subtests.test("what was changed by hand is mended"):
        assert f"drift: {line.strip()}: not there -> there" in up.output
        assert "homelab-nvidia-nodes.service is gone" in up.output
        assert up.changed == {"pve-probe", "phoenix-probe", "phoenix-cards", "phoenix-opened", "pve-nodes"}
        assert line in conf(stack, 901)
        assert all(opens(stack, 901, f"/dev/{name}", NOBODY) for name in ("nvidia0", "nvidia1", "nvidia-uvm"))
        assert (stack.lab.root / "etc/systemd/system/homelab-nvidia-nodes.service").exists()
        assert (
            len([one for one in raw_lines(stack, 901) if "devices.allow" in one]) == len(set(raw_lines(stack, 901))) / 2
        )

    stack.destroy()
    assert not opens(stack, 901, "/dev/nvidia1")
    assert stack.lab.snapshot() == stock


def raw_lines(stack: Stack, ctid: int) -> list[str]:
    return [line for line in conf(stack, ctid).splitlines() if line.startswith("lxc.")]
