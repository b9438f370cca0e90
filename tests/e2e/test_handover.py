"""One card in turn: containers have it, a VM takes it when it starts, and gives it back; nothing of `up`, refresh or destroy gets in between."""

from __future__ import annotations

from collections.abc import Callable

from tests.e2e.conftest import Stack
from tests.e2e.test_gpu_lxc import NOBODY, conf, opens
from tests.e2e.test_gpu_vm import given_back
from tests.waiting import wait_until

CARD, AUDIO = "0000:01:00.0", "0000:01:00.1"
SHARED = {"big": {"match": "10de:2b85", "use": "shared"}}
VMS = {"sandbox": {"vmid": 103, "gpus": ["big"]}}
CONTAINERS = {"phoenix": {"ctid": 901, "gpus": ["big"], "start": True}}
AWAY = "gpus.big is with VM 103 since"


def runs(stack: Stack, ctid: int) -> bool:
    return bool(stack.lab.run(f"pct status {ctid}").stdout == "status: running\n")


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


def test_a_vm_takes_the_card_from_containers_and_gives_it_back(stack_on: Callable[..., Stack]) -> None:
    stack = stack_on(
        "phoenix", gpus=SHARED, vms=VMS, containers=CONTAINERS, nvidia={"driver": "580", "onDestroy": "purge"}
    )
    stack.lab.run("qm set 103 --onboot 0")
    assert "a storage of this host (a folder) that takes snippets" in stack.preview(ok=False).output
    stack.lab.run("pvesh set /storage/local --content images,iso,vztmpl,backup,rootdir,snippets")
    stock, given, vm = stack.lab.snapshot(), conf(stack, 901), stack.lab.run("qm config 103").stdout
    for service, why in (
        ("ct: 901", "it is under HA, which would start it again"),
        ("vm: 103", "HA is to keep it started"),
    ):
        stack.lab.run(f"mkdir -p $ROOT/etc/pve/ha; echo '{service}' >$ROOT/etc/pve/ha/resources.cfg")
        assert why in stack.preview(ok=False).output
    stack.lab.run("rm -r $ROOT/etc/pve/ha")
    planned = stack.preview().output
    assert "/usr/local/sbin/homelab-handover" in planned and "driver=keep" in planned
    up = stack.up()
    order = [name for _, name in up.steps]
    # What looks whether the card is free is there before the boot, after which a VM may start with the host.
    steps = ["pve-handover", "sandbox-hook", "pve-reboot", "phoenix-opened", "sandbox-change"]
    assert [order.index(one) for one in steps] == sorted(order.index(one) for one in steps), (
        "a VM's start ends the containers"
    )
    assert "homelab.vfio" not in stack.lab.run("cat $ROOT/proc/cmdline").stdout
    assert stack.drivers()[CARD] == "vfio-pci", "it ran before, and runs again, with the card"
    config = stack.lab.run("qm config 103").stdout
    assert "hookscript: local:snippets/homelab-handover.sh" in config and "mapping=big,driver=keep" in config
    # Proxmox VE's own stop and start.
    stack.lab.run("qm stop 103")
    wait_until(lambda: runs(stack, 901))
    wait_until(lambda: not (stack.lab.root / "var/lib/homelab/handover/big.state").exists())
    assert stack.drivers()[CARD] == "nvidia" and opens(stack, 901, "/dev/nvidia0", NOBODY)
    stack.lab.run("qm start 103")
    assert [stack.drivers()[one] for one in (CARD, AUDIO)] == ["vfio-pci", "vfio-pci"] and not runs(stack, 901)
    again = stack.up("--refresh")
    assert again.changed == set() and f"phoenix: not compared: {AWAY}" in again.output
    changed = stack.config["homelab:containers"]["phoenix"]
    changed["method"] = "mount-entry"
    stack.write_config()
    assert AWAY in stack.up(ok=False).message
    assert AWAY in stack.destroy(ok=False).message
    assert stack.drivers()[CARD] == "vfio-pci" and "hookscript" in stack.lab.run("qm config 103").stdout
    del changed["method"]
    stack.write_config()
    stack.lab.run("qm stop 103")
    wait_until(lambda: runs(stack, 901))
    wait_until(lambda: not (stack.lab.root / "var/lib/homelab/handover/big.state").exists())
    assert stack.drivers()[CARD] == "nvidia" and opens(stack, 901, "/dev/nvidia0", NOBODY)

    stack.lab.run("qm set 103 --delete hookscript; systemctl disable homelab-handover.timer")
    mended = stack.up("--refresh")
    assert (
        "drift (handover): VM 103 has lost the hookscript" in mended.output and "timer is not enabled" in mended.output
    )
    assert mended.changed == {"pve-handover", "sandbox-hook"}
    assert "hookscript" in stack.lab.run("qm config 103").stdout

    # Its use changes, and changes back: each is one `up`, and leaves nothing of the one before.
    all_of_it, nothing = dict.fromkeys(handed(stack), True), dict.fromkeys(handed(stack), False)

    def use(wanted: str, *, by_vm: bool, by_container: bool, **card: object) -> None:
        stack.host["gpus"] = {"big": {"match": "10de:2b85", "use": wanted, **card}}
        stack.config["homelab:vms"] = {"sandbox": {"host": "pve", **VMS["sandbox"]}} if by_vm else {}
        stack.config["homelab:containers"] = (
            {"phoenix": {"host": "pve", **CONTAINERS["phoenix"]}} if by_container else {}
        )
        stack.up()

    def is_the_containers() -> bool:
        return stack.drivers()[CARD] == "nvidia" and opens(stack, 901, "/dev/nvidia0", NOBODY)

    def is_shared() -> bool:
        config = stack.lab.run("qm config 103").stdout
        return handed(stack) == all_of_it and "hostpci0: mapping=big,driver=keep,pcie=1" in config

    use("vm", by_vm=True, by_container=False, allowContainers=[901, 950])
    assert [stack.drivers()[one] for one in (CARD, AUDIO)] == ["vfio-pci", "vfio-pci"] and handed(stack) == nothing
    assert "hostpci0: mapping=big,pcie=1" in stack.lab.run("qm config 103").stdout and conf(stack, 901) == given
    # Without its hookscript, a VM that starts with the host would take it from the driver.
    stack.lab.run("qm set 103 --onboot 1")
    stack.host["gpus"], stack.config["homelab:vms"] = SHARED, {}
    assert "VM 103 (Sandbox) has it (hostpci0)" in stack.preview(ok=False).message
    stack.lab.run("qm set 103 --onboot 0")
    use("shared", by_vm=True, by_container=True)
    assert is_shared() and is_the_containers()
    use("lxc", by_vm=False, by_container=True)
    assert is_the_containers() and handed(stack) == nothing
    assert stack.lab.run("qm config 103").stdout == vm and not (stack.lab.root / "var/lib/homelab/handover").exists()
    use("shared", by_vm=True, by_container=True)
    assert is_shared() and is_the_containers()
    again = stack.up("--refresh")
    assert again.changed == set(), again.output

    stack.destroy()
    assert conf(stack, 901) == given and "hook" not in stack.lab.run("qm config 103").stdout
    given_back(stack, stock)
