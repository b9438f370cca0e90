"""Cards to containers: from broken to working, on both methods, mended, changed, given back."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tests.e2e.conftest import Stack
from tests.e2e.person import DOWN, ENTER, SPACE, UP

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


def test_901_goes_from_broken_to_working_and_back_with_950_untouched(converged: Callable[..., Stack]) -> None:
    stack = converged("phoenix", gpus=CARDS, containers=PHOENIX, **NO_REBOOT)
    stock, up, media = stack.stock, stack.first, f"etc/pve/nodes/{stack.lab.api['node']}/lxc/950.conf"
    assert up
    for path in ("/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl", "/dev/nvidia-uvm"):
        assert opens(stack, 901, path)
        assert opens(stack, 901, path, NOBODY)
    for said in ("dev0: /dev/nvidia0,mode=0666", "shutting container 901 down", "opened in container 901"):
        assert said in up.output  # each step says what it did
    assert stack.lab.snapshot()[media] == stock[media]
    assert power(stack, 950) == []
    assert power(stack, 901) == ["shutdown", "start"]
    names = [name for operation, name in up.steps if operation == "create"]
    order = ["pve-nodes", "phoenix-probe", "phoenix-conf", "phoenix-restart", "phoenix-opened"]
    assert [name for name in names if name in order] == order
    found = stack.output()["containers"]["phoenix"]
    assert (found["ctid"], found["gpus"], found["method"], found["state"]) == (901, [0, 1], "device", "running")

    mark = stack.lab.mark()
    assert stack.up("--refresh").changed == set()
    assert len(stack.lab.connections(mark)) == 1

    stack.destroy()
    assert not opens(stack, 901, "/dev/nvidia0")
    assert stack.lab.snapshot() == stock


def raw_lines(stack: Stack, ctid: int) -> list[str]:
    return [line for line in conf(stack, ctid).splitlines() if line.startswith("lxc.")]


def device_lines(stack: Stack, ctid: int) -> list[str]:
    return [line for line in conf(stack, ctid).splitlines() if re.match(r"dev\d+:", line)]


def test_both_methods_on_pve_8_privileged_and_unprivileged_and_from_one_to_the_other(
    stack_on: Callable[..., Stack],
) -> None:
    wanted = {"jellyfin": {"ctid": 210, "gpus": ["rtx4060"]}, "ai": {"ctid": 211, "gpuAssignment": "all"}}
    stack = stack_on("containers-pve8", containers=wanted, **NO_REBOOT)
    containers(stack)["ai"]["method"] = "mount-entry"
    stock = {ctid: conf(stack, ctid) for ctid in (210, 211, 212)}
    stack.up()
    # The RTX 4060 comes first on the bus, and is number 1.
    assert "dev0: /dev/nvidia1,mode=0666" in device_lines(stack, 210)
    assert not opens(stack, 210, "/dev/nvidia0")
    assert opens(stack, 210, "/dev/nvidia1", NOBODY)
    assert device_lines(stack, 211) == []
    assert "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file" in raw_lines(stack, 211)
    for path in ("/dev/nvidia0", "/dev/nvidia1", "/dev/nvidia-uvm"):
        assert opens(stack, 211, path, NOBODY)

    containers(stack)["ai"]["method"] = "device"
    containers(stack)["jellyfin"]["method"] = "mount-entry"
    changed = stack.up().changed
    assert {"ai-restart", "jellyfin-restart", "ai-opened", "jellyfin-opened"} <= changed
    assert (raw_lines(stack, 211), device_lines(stack, 210)) == ([], [])
    assert opens(stack, 211, "/dev/nvidia0", NOBODY)
    assert opens(stack, 210, "/dev/nvidia1", NOBODY)
    assert not opens(stack, 210, "/dev/nvidia0")
    outputs = stack.output()["containers"]
    assert [outputs[name]["method"] for name in ("ai", "jellyfin")] == ["device", "mount-entry"]

    stack.destroy()
    assert {ctid: conf(stack, ctid) for ctid in stock} == stock


def test_another_assignment_is_written_then_restarted_then_verified_in_this_order(
    converged: Callable[..., Stack],
) -> None:
    stack = converged("phoenix", gpus=CARDS, containers=PHOENIX, **NO_REBOOT)
    containers(stack)["phoenix"]["gpuAssignment"] = "1"
    mark = stack.lab.mark()
    up = stack.up()
    order = ["phoenix-probe", "phoenix-conf", "phoenix-restart", "phoenix-opened"]
    begun = [name for operation, name in up.planned if name in order and operation in ("update", "create-replacement")]
    assert begun == order
    ended = [name for operation, name in up.steps if name in order and operation in ("update", "create-replacement")]
    assert ended == order
    assert {name for operation, name in up.steps if "replace" in operation} == set(order[2:])
    assert power(stack, 901, mark) == ["shutdown", "start"]
    assert not opens(stack, 901, "/dev/nvidia0")
    assert opens(stack, 901, "/dev/nvidia1", NOBODY)

    containers(stack)["phoenix"]["gpuAssignment"] = "none"
    stack.up()
    assert device_lines(stack, 901) == []
    assert not opens(stack, 901, "/dev/nvidia1")


def test_a_container_that_is_off_gets_its_configuration_and_stays_off(stack_on: Callable[..., Stack]) -> None:
    stack = stack_on("phoenix", gpus=CARDS, containers=PHOENIX, **NO_REBOOT)
    stack.lab.run("pct stop 901")
    before, mark = conf(stack, 901), stack.lab.mark()
    stack.up()
    assert power(stack, 901, mark) == []
    assert "dev0: /dev/nvidia0,mode=0666" in device_lines(stack, 901)
    assert stack.output()["containers"]["phoenix"]["state"] == "stopped"
    containers(stack)["phoenix"]["start"] = True
    stack.up()
    assert power(stack, 901, mark) == ["start"]
    assert opens(stack, 901, "/dev/nvidia0", NOBODY)
    stack.lab.run("pct stop 901")
    mark = stack.lab.mark()
    stack.destroy()
    assert (power(stack, 901, mark), conf(stack, 901)) == ([], before)


def test_what_was_changed_by_hand_or_by_a_kernel_is_mended_by_a_refresh(stack_on: Callable[..., Stack]) -> None:
    stack = stack_on("phoenix", gpus=CARDS, containers=PHOENIX, **NO_REBOOT)
    containers(stack)["phoenix"]["method"] = "mount-entry"
    stack.up()
    path = stack.lab.root / "etc/pve/lxc/901.conf"
    line = "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file\n"
    path.write_text(path.read_text().replace(line, ""))
    (stack.lab.root / "etc/systemd/system/homelab-nvidia-nodes.service").unlink()
    preview = stack.preview("--refresh")
    assert (
        "drift: lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file is not there" in preview.output
    )
    assert "homelab-nvidia-nodes.service is gone" in preview.output
    mended = {"phoenix-conf", "phoenix-restart", "phoenix-opened", "pve-nodes"}
    assert stack.up("--refresh").changed == mended
    assert line in conf(stack, 901)
    assert opens(stack, 901, "/dev/nvidia0", NOBODY)
    assert (stack.lab.root / "etc/systemd/system/homelab-nvidia-nodes.service").exists()

    stack.lab.fault("nvidia-majors-change")
    stack.lab.reboot()
    # What runs at each boot has brought the rules to the numbers of this one.
    assert opens(stack, 901, "/dev/nvidia-uvm", NOBODY)
    assert stack.up("--refresh").changed <= {"phoenix-probe", "phoenix-opened"}
    assert opens(stack, 901, "/dev/nvidia-uvm", NOBODY)
    assert len([one for one in raw_lines(stack, 901) if "devices.allow" in one]) == len(set(raw_lines(stack, 901))) / 2


def test_another_name_in_the_settings_leaves_a_container_its_card_and_another_container_gets_it(
    stack_on: Callable[..., Stack],
) -> None:
    stack = stack_on("containers-pve8", containers={"ai": {"ctid": 211, "gpuAssignment": "0"}}, **NO_REBOOT)
    stock = {ctid: conf(stack, ctid) for ctid in (210, 211)}
    stack.up()
    had, mark = conf(stack, 211), stack.lab.mark()
    containers(stack)["media"] = containers(stack).pop("ai")
    renamed = stack.up()
    assert "container 211 is containers.media now" in renamed.output
    assert conf(stack, 211) == had != stock[211] and power(stack, 211, mark) == []
    assert opens(stack, 211, "/dev/nvidia0", NOBODY)
    # Another one gets them, and the first is given back.
    containers(stack)["media"]["ctid"] = 210
    stack.up()
    assert conf(stack, 211) == stock[211]
    assert not opens(stack, 211, "/dev/nvidia0")
    assert opens(stack, 210, "/dev/nvidia0", NOBODY)
    stack.destroy()
    assert {ctid: conf(stack, ctid) for ctid in stock} == stock


def test_one_of_two_identical_cards_to_a_vm_the_other_to_containers_in_one_run(by_init: Callable[..., Stack]) -> None:
    stack = by_init(
        "mixed",
        ("What is rtx3090 ", f"{DOWN}{ENTER}"),  # from the end, around it: for VM 103
        ("What is rtx3090-2", f"{UP}{UP}{ENTER}"),  # from the end: none, host, containers
        ("For which containers?", f"{DOWN}{SPACE}{ENTER}"),  # 201 is preselected; 202, too
        ("What is aspeed", ENTER),
        ("CUDA's toolkit in the containers", f"{UP}{ENTER}"),  # none: around the list's end
        ("NVIDIA's container toolkit in the containers", ENTER),
    )
    stack.lab.run("pct set 201 --onboot 0")
    stack.up()
    assert stack.drivers()["0000:1d:00.0"] == "vfio-pci"
    assert stack.drivers()["0000:1e:00.0"] == "nvidia"
    assert opens(stack, 201, "/dev/nvidia0", NOBODY)  # it runs again, though our reboot stopped it
    assert opens(stack, 201, "/dev/nvidia-uvm", NOBODY)
    stack.lab.run("pct set 201 --onboot 1")
    assert "dev0: /dev/nvidia0,mode=0666" in conf(stack, 202)
    stack.lab.reboot()  # nothing but the service makes the nodes on this host
    assert opens(stack, 201, "/dev/nvidia-uvm", NOBODY)
    assert stack.up("--refresh").changed == set()
