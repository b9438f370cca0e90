"""NVIDIA's driver on the host itself, for the cards that stay with it; and a host, a VM and two containers in one run, whose cards change."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from homelab.cli.doctor import WELL
from homelab.cli.doctor import main as doctor
from lab.stock import without_subscription
from tests import connections
from tests.conftest import PROJECT
from tests.e2e.conftest import Stack
from tests.e2e.nvidia import inside, inside_container, reached
from tests.e2e.test_gpu_lxc import NOBODY, conf, opens
from tests.engine_stack import name_of

SMI = "nvidia-smi --query-gpu=name,driver_version --format=csv,noheader"
KEPT = {"rtx5090": {"match": "10de:2b85", "use": "host"}}


def built(stack: Stack) -> dict[str, str]:
    """Kernel -> what DKMS says of the driver for it, on the host."""
    lines = stack.lab.run("dkms status").stdout.splitlines()
    found = (line.partition(": ") for line in lines if line.startswith("nvidia/") and "," in line)
    return {words.split(", ")[1]: state for words, _, state in found}


def test_a_stock_host_gets_the_driver_for_every_kernel_and_a_kernel_update_is_drift(
    stack_on: Callable[..., Stack], capsys: pytest.CaptureFixture[str]
) -> None:
    stack = stack_on("rtx5090", gpus=KEPT, nvidia={"driver": "580", "onDestroy": "purge"})
    # As installed, without a list of packages, it is refused: tests/lab/test_init.py.
    without_subscription(stack.lab.root)
    stack.lab.run("apt-get update")
    inventory = "dpkg-query -W | grep -v '^proxmox-kernel'; find $HOMELAB_ROOT/etc/apt $HOMELAB_ROOT/etc/modprobe.d $HOMELAB_ROOT/etc/systemd -type f | sort | xargs sha256sum"
    before = stack.lab.run(inventory).stdout
    kernels = {path.name.removeprefix("vmlinuz-") for path in (stack.lab.root / "boot").glob("vmlinuz-*")}
    up = stack.up()
    assert "NVIDIA GeForce RTX 5090, 580." in stack.lab.run(SMI).stdout
    assert built(stack) == dict.fromkeys(kernels, "installed")
    assert stack.lab.run("systemctl is-active homelab-nvidia-persistence.service").stdout == "active\n"
    found = stack.output()["hosts"]["pve"]["nvidia"]
    assert (found["flavour"], [card["name"] for card in found["gpus"]]) == ("open", ["NVIDIA GeForce RTX 5090"])
    # One reboot at most, for all layers, and after the modules were built for what may boot.
    assert len(stack.lab.boots()) <= 2
    done = [name for _, name in up.steps]
    assert done.index("pve-packages") < done.index("pve-reboot") < done.index("pve-verified")

    # A kernel update for which the module wasn't built.
    (newest,) = {kernel for kernel in built(stack)} & {stack.lab.run("uname -r").stdout.strip()}
    stack.lab.run(f"dkms uninstall nvidia/$(modinfo -F version nvidia) -k {newest}")
    assert "installed" not in built(stack).get(newest, "")
    stack.write_config()
    words = ["host", "--json", "--config-file", str(stack.folder / "Pulumi.lab.yaml")]
    assert doctor(words) != WELL
    told = json.loads(capsys.readouterr().out)
    (finding,) = told["findings"]
    assert finding["next"].startswith("`pulumi up --refresh`") and newest in finding["found"]
    up = stack.up("--refresh")
    assert all(f"drift: {line}\n" in up.output for line in finding["found"].split("; "))
    assert {"pve-packages", "pve-verified"} <= up.changed
    assert built(stack)[newest] == "installed"
    connections.end_all()
    assert doctor(words) == WELL

    stack.destroy_as_left()
    assert stack.lab.run(inventory).stdout == before


def test_one_of_two_identical_cards_to_a_vm_the_other_to_containers_with_the_driver_everywhere_in_one_run(
    stack_on: Callable[..., Stack], subtests: pytest.Subtests
) -> None:
    stack = stack_on(
        "mixed",
        vms={"sandbox": {"vmid": 103, "gpus": ["vm"], "nvidia": {"driver": "580"}, "power": "running"}},
        containers={
            "ollama": {"ctid": 201, "gpus": ["containers"], "nvidia": {}},
            "transcode": {"ctid": 202, "gpus": ["containers"], "power": "running"},  # it is off
        },
        nvidia={"driver": "580"},
    )
    stack.lab.run("pct set 201 --onboot 0; qm set 103 --net0 virtio,bridge=vmbr0")
    stack.config["homelab:vms"]["sandbox"] |= reached(stack.lab)
    stack.up()
    with subtests.test("each card where it belongs"):
        assert stack.machine.drivers()["0000:1d:00.0"] == "vfio-pci"
        assert stack.machine.drivers()["0000:1e:00.0"] == "nvidia"
        assert opens(stack, 201, "/dev/nvidia0", NOBODY)  # it runs again, though our reboot stopped it
        assert opens(stack, 201, "/dev/nvidia-uvm", NOBODY)
        assert "dev0: /dev/nvidia0,mode=0666" in conf(stack, 202)
    with subtests.test("the driver is in the VM and in the container"):
        assert "580." in inside(stack, SMI)
        version = "nvidia-smi --query-gpu=driver_version --format=csv,noheader"
        assert set(inside_container(stack, 201, version).split()) == set(stack.lab.run(version).stdout.split())

    # The owner's `homelab report` says what was seen, and nothing about the network.
    file = stack.folder / "report.json"
    words = ["--stack", "lab", "--config-file", str(stack.folder / "Pulumi.lab.yaml"), "--output", str(file)]
    mark = stack.lab.mark()
    done = subprocess.run(
        [sys.executable, "-m", "homelab", "report", *words],
        cwd=PROJECT, env=stack.environment, capture_output=True, text=True,
    )  # fmt: skip
    with subtests.test("a report wakes no card"):
        assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
        assert not [entry for entry in stack.lab.programs(mark) if entry["program"] in ("nvidia-smi", "modprobe")]
    with subtests.test("a report says what was seen"):
        text = file.read_text()
        host, *guests = json.loads(text)["parts"]
        drivers = {card["use"]: {one["driver"] for one in card["functions"]} for card in host["cards"]}
        assert drivers["vm"] == {"vfio-pci"} and "nvidia" in drivers["lxc"], drivers
        assert {guest["kind"] for guest in guests} == {"vm", "container"}
    with subtests.test("a report names nobody"):
        output = stack.output()
        secret = {stack.host["address"], output["hosts"]["pve"]["bootId"]}
        secret |= {guest["name"] for kind in ("vms", "containers") for guest in output[kind].values()}
        secret |= {card["uuid"] for card in output["hosts"]["pve"]["nvidia"]["gpus"]} | {"0000:1d", "SHA256", "ssh-"}
        assert not [word for word in secret if word in text]
        assert not re.search(
            r"\bpve\b(?<!-pve)", text.replace('"pve":', "")
        )  # the node's name, which a kernel's ends with

    stack.lab.run("pct set 201 --onboot 1; pct set 202 --onboot 1; qm set 103 --onboot 1")
    stack.lab.reboot()  # nothing but the service makes the nodes on this host
    with subtests.test("after a boot the service has made the nodes"):
        assert opens(stack, 201, "/dev/nvidia-uvm", NOBODY)
    stack.lab.wait_guest(103)
    mark = stack.lab.mark()
    again = stack.up("--refresh")
    with subtests.test("nothing has changed: one connection each"):
        assert again.changed == set(), again.output
        assert (len(stack.lab.connections(mark)), len(stack.lab.connections(mark, guest=103))) == (1, 1)
    # What is the same for everybody lies on the host, and isn't in the state: each text would be tens of kilobytes.
    with subtests.test("what the state keeps is short"):
        sent = {
            name_of(one["urn"]): len(one["inputs"]["stdin"])
            for one in stack.resources()
            if "stdin" in one.get("inputs", {})
        }
        assert not {name for name, length in sent.items() if length > 20_000}, sent

    # The VM's card goes to a container, too. Not in one run, which is refused (tests/unit/test_gates.py): the host restarts before the VM loses
    # it, and the VM starts with the host.
    boots = len(stack.lab.boots())
    stack.config["homelab:vms"] = {}
    stack.up()
    with subtests.test("the VM's card is free"):
        assert "hostpci" not in stack.lab.run("qm config 103").stdout
        assert (len(stack.lab.boots()), stack.machine.drivers()["0000:1d:00.0"]) == (boots, "vfio-pci")
    stack.host["gpus"]["vm"]["use"] = "lxc"
    stack.config["homelab:containers"]["transcode"]["gpus"] = ["containers", "vm"]
    stack.up()
    with subtests.test("the card goes to a container"):
        assert (len(stack.lab.boots()), stack.machine.drivers()["0000:1d:00.0"]) == (boots + 1, "nvidia")
        assert all(opens(stack, 202, f"/dev/nvidia{number}", NOBODY) for number in (0, 1))
