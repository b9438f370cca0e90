"""One card in turn: containers have it, a VM takes it when it starts, and gives it back; nothing of `up`, refresh or destroy gets in between."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest

from tests.e2e.conftest import Stack, refusal
from tests.e2e.test_gpu_lxc import CARDS, NO_REBOOT, NOBODY, PHOENIX, opens
from tests.e2e.test_gpu_vm import given_back
from tests.waiting import wait_until

CARD, AUDIO = "0000:01:00.0", "0000:01:00.1"
SHARED = {"big": {"match": "10de:2b85", "use": "shared"}}
VMS = {"sandbox": {"vmid": 103, "gpus": ["big"]}}
CONTAINERS = {"phoenix": {"ctid": 901, "gpus": ["big"], "power": "running"}}
AWAY = re.compile("gpus.big .*VM 103")


def handed(stack: Stack) -> dict[str, bool]:
    """What of the handover is on the host, and whether the VM names it."""
    root = stack.lab.root
    wants = root / "etc/systemd/system"
    return {
        "program": (root / "usr/local/sbin/homelab-handover").exists(),
        "snippet": (root / "var/lib/vz/snippets/homelab-handover.sh").exists(),
        "service": (wants / "multi-user.target.wants/homelab-handover.service").is_symlink(),
        "timer": (wants / "timers.target.wants/homelab-handover.timer").is_symlink(),
        "hookscript": "hookscript" in stack.lab.run("qm config 103").stdout,
    }


def test_a_vm_takes_the_card_from_containers_and_gives_it_back(
    converged: Callable[..., Stack], subtests: pytest.Subtests
) -> None:
    """Begun where a container alone has the cards. Its use changes from there, and each change is one `up`."""
    stack = converged("phoenix", gpus=CARDS, containers=PHOENIX, **NO_REBOOT)
    of_container = f"etc/pve/nodes/{stack.lab.api['node']}/lxc/901.conf"
    stock = stack.lab.snapshot()
    stack.lab.run("qm set 103 --onboot 0")
    del stack.host["iommu"]
    stack.host["gpus"] = SHARED
    stack.host["nvidia"] = {"driver": "580", "onDestroy": "purge"}
    stack.config["homelab:vms"] = {"sandbox": {"host": "pve", **VMS["sandbox"]}}
    stack.config["homelab:containers"] = {"phoenix": {"host": "pve", **CONTAINERS["phoenix"]}}

    # What stands against it. (A container under HA: tests/unit/test_ha.py.)
    stack.lab.run("mkdir -p $HOMELAB_ROOT/etc/pve/ha; echo 'vm: 103' >$HOMELAB_ROOT/etc/pve/ha/resources.cfg")
    assert "HA manages it (started)" in refusal(stack)
    stack.lab.run("rm -r $HOMELAB_ROOT/etc/pve/ha")
    # Of the host before any `up`, but for what has just been set by hand. No storage of it takes snippets.
    changed, vm = stack.lab.snapshot(), stack.lab.run("qm config 103").stdout
    stock = stack.stock | {path: now for path, now in changed.items() if stock.get(path) != now}
    up = stack.up()
    order = [name for _, name in up.steps]
    # What looks whether the card is free is there before the boot, after which a VM may start with the host.
    steps = ["pve-handover", "sandbox-hook", "pve-reboot", "phoenix-opened", "sandbox-cards"]
    with subtests.test("what an `up` makes"):
        assert [order.index(one) for one in steps] == sorted(order.index(one) for one in steps), (
            "a VM's start ends the containers"
        )
        assert "homelab.vfio" not in stack.lab.run("cat $HOMELAB_ROOT/proc/cmdline").stdout
        assert stack.machine.drivers()[CARD] == "vfio-pci", "it ran before, and runs again, with the card"
        config = stack.lab.run("qm config 103").stdout
        assert "hookscript: local:snippets/homelab-handover.sh" in config and "mapping=big,driver=keep" in config
    # Proxmox VE's own stop and start.
    stack.lab.run("qm stop 103")
    wait_until(lambda: 901 in stack.machine.guests_on())
    wait_until(lambda: not (stack.lab.root / "var/lib/homelab/handover/big.state").exists())
    assert stack.machine.drivers()[CARD] == "nvidia" and opens(stack, 901, "/dev/nvidia0", NOBODY)
    stack.lab.run("qm start 103")
    assert [stack.machine.drivers()[one] for one in (CARD, AUDIO)] == [
        "vfio-pci",
        "vfio-pci",
    ] and 901 not in stack.machine.guests_on()
    again = stack.up("--refresh")
    with subtests.test("a refresh leaves a card alone that is away"):
        assert again.changed == set() and "phoenix: not compared: " in again.output and AWAY.search(again.output)
    container = stack.config["homelab:containers"]["phoenix"]
    container["method"] = "mount-entry"
    stack.write_config()
    assert AWAY.search(stack.up(ok=False).message)
    assert AWAY.search(stack.destroy(ok=False).message)
    assert stack.machine.drivers()[CARD] == "vfio-pci" and "hookscript" in stack.lab.run("qm config 103").stdout
    del container["method"]
    stack.write_config()
    stack.lab.run("qm stop 103")
    wait_until(lambda: 901 in stack.machine.guests_on())
    wait_until(lambda: not (stack.lab.root / "var/lib/homelab/handover/big.state").exists())
    assert stack.machine.drivers()[CARD] == "nvidia" and opens(stack, 901, "/dev/nvidia0", NOBODY)

    stack.lab.run("qm set 103 --delete hookscript; systemctl disable homelab-handover.timer")
    mended = stack.up("--refresh")
    with subtests.test("what its owner has taken away is mended"):
        assert (
            "drift (handover): VM 103 has lost the hookscript" in mended.output
            and "timer is not enabled" in mended.output
        )
        assert mended.changed == {"pve-probe", "pve-handover", "sandbox-hook"}, (
            "nothing else is found after the card's way there and back"
        )
        assert "hookscript" in stack.lab.run("qm config 103").stdout

    # Its use changes, and changes back: each leaves nothing of the one before.
    all_of_it, nothing = dict.fromkeys(handed(stack), True), dict.fromkeys(handed(stack), False)

    def is_the_containers() -> bool:
        return stack.machine.drivers()[CARD] == "nvidia" and opens(stack, 901, "/dev/nvidia0", NOBODY)

    def is_shared() -> bool:
        config = stack.lab.run("qm config 103").stdout
        return handed(stack) == all_of_it and "hostpci0: mapping=big,driver=keep,pcie=1" in config

    both = copy.deepcopy((stack.config["homelab:vms"], stack.config["homelab:containers"]))
    stack.host["gpus"] = {"big": {"match": "10de:2b85", "use": "lxc"}}
    stack.config["homelab:vms"] = {}
    stack.up()
    with subtests.test("for containers alone"):
        assert is_the_containers() and handed(stack) == nothing
        assert (
            stack.lab.run("qm config 103").stdout == vm and not (stack.lab.root / "var/lib/homelab/handover").exists()
        )
    stack.host["gpus"] = {"big": {"match": "10de:2b85", "allowContainers": [901, 950]}}
    stack.config["homelab:vms"], stack.config["homelab:containers"] = both[0], {}
    stack.up()
    with subtests.test("for a VM alone"):
        assert [stack.machine.drivers()[one] for one in (CARD, AUDIO)] == ["vfio-pci", "vfio-pci"] and handed(
            stack
        ) == nothing
        assert (
            "hostpci0: mapping=big,pcie=1" in stack.lab.run("qm config 103").stdout
            and stack.lab.snapshot()[of_container] == stock[of_container]
        )
    # Without its hookscript, a VM that starts with the host would take it from the driver.
    stack.lab.run("qm set 103 --onboot 1")
    stack.host["gpus"], stack.config["homelab:vms"] = SHARED, {}
    with subtests.test("a VM that has it without a hookscript"):
        assert "VM 103 (Sandbox) has it (hostpci0: " in refusal(stack)
    stack.lab.run("qm set 103 --onboot 0")
    stack.config["homelab:vms"], stack.config["homelab:containers"] = both
    stack.up()
    with subtests.test("for both again"):
        assert is_shared() and is_the_containers()
    stack.destroy_as_left()
    assert handed(stack) == nothing and not (stack.lab.root / "var/lib/homelab/handover").exists()
    assert stack.lab.run("qm config 103").stdout == vm
    given_back(stack, stock)
