"""``homelab switch`` against the lab, over SSH: a shared card to a VM and back by hand, and the rehearsal of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from homelab.cli.command_line import main
from homelab.remote import agent
from lab import Lab
from remote_scripts.layers.handover import Wanted
from remote_scripts.layers.hookscript import Wanted as Hook
from tests import sent_along
from tests.lab.test_handover import BIG, CARD, OLLAMA, OTHER

TO_VM, BACK = ["big", "--to", "vm:gaming"], ["big", "--to", "containers"]


@pytest.fixture
def lab(labs: Callable[[str], Lab]) -> Lab:
    return labs("phoenix")


@pytest.fixture
def about(lab: Lab, tmp_path: Path) -> list[str]:
    """Settings of one shared card, which two VMs may take; the other card's use is lxc."""
    ssh = {key: lab.connection[key] for key in ("port", "hostKey", "privateKeyFile")}
    gpus = {"big": {"match": "10de:2b85", "use": "shared"}, "small": {"match": "10de:2684", "use": "lxc"}}
    host = {"address": lab.connection["host"], "node": lab.api["node"], "ssh": ssh, "gpus": gpus}
    vms = {"gaming": {"host": "pve", "vmid": 103, "gpus": ["big"], "shutdown": {"timeout": 20, "otherwise": "stop"}}}
    values = {"homelab:hosts": {"pve": host | {"nvidia": {"driver": "580"}}}, "homelab:vms": vms}
    file = tmp_path / "Pulumi.lab.yaml"
    file.write_text(yaml.safe_dump({"config": values}))
    return ["--config-file", str(file)]


def installed(lab: Lab) -> None:
    """What `up` brings: the handover, and the VM's option; VM 103 is off, and container 950 has the card open."""
    lab.fault("card-users", [OLLAMA])
    lab.run("qm stop 103; pvesh set /storage/local --content images,iso,vztmpl,backup,rootdir,snippets")
    for layer, wanted in (("handover", Wanted(cards=(BIG,))), ("hookscript", Hook(vmid=103))):
        lab.run(agent.command_in_memory("root"), stdin=sent_along.text("apply", agent.request(layer, wanted)))
    lab.run("qm set 103 --onboot 0 --hostpci0 0000:01:00,driver=keep,pcie=1")


def tree(lab: Lab) -> dict[str, object]:
    """What a rehearsal could have left: every file, what the card is on, who runs."""
    files = {str(path): path.read_bytes() for path in lab.root.joinpath("run").rglob("*") if path.is_file()}
    drivers = [lab.run(f"readlink $ROOT/sys/bus/pci/devices/{one}/driver").stdout for one in (CARD, OTHER)]
    words = f"pct list; qm list; nvidia-smi --query-gpu=persistence_mode --format=csv,noheader; nvidia-smi drain -q -p {CARD}"
    return {**lab.snapshot(), **files, "drivers": drivers, "asked": lab.run(words).stdout}


def test_a_card_is_switched_by_hand_and_back(lab: Lab, about: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["switch", *TO_VM, *about]) == 2
    assert "not installed on the host" in capsys.readouterr().err
    assert main(["switch", "big", "--to", "vm:work", *about]) == 2
    assert "VMs that may: gaming" in capsys.readouterr().err
    installed(lab)
    assert main(["switch", *BACK, *about]) == 0
    assert "is with the host already" in capsys.readouterr().out

    # What would be, without anything of it.
    before = tree(lab)
    assert main(["switch", *TO_VM, "--rehearse", *about]) == 0
    said = capsys.readouterr().out
    assert "started again afterwards: container 950" in said
    assert "Nothing prevents VM 103" in said
    lab.fault("card-users", [OLLAMA, {"pid": 4712, "comm": "Xorg", "card": CARD, "opens": ["modeset"]}])
    before = tree(lab)
    assert main(["switch", *TO_VM, "--rehearse", *about]) == 1
    said = capsys.readouterr().out
    assert "prevents it: in use by Xorg (PID 4712" in said and tree(lab) == before

    # Somebody has it: the start's own reason, and nobody is shut down.
    assert main(["switch", *TO_VM, *about]) == 1
    seen = capsys.readouterr()
    assert "in use by Xorg (PID 4712" in seen.err and "container 950" not in seen.out
    assert lab.run("pct status 950").stdout == "status: running\n"
    lab.fault("card-users", [OLLAMA])

    assert main(["switch", *TO_VM, *about]) == 0
    said = capsys.readouterr().out
    assert "shutting container 950 down" in said and "VM 103 runs, with gpus.big." in said
    assert main(["switch", "big", "--to", "Sandbox", *about]) == 0
    assert "is with VM 103 since" in capsys.readouterr().out
    assert main(["switch", *BACK, "--rehearse", *about]) == 0
    assert "would be started again: container 950" in capsys.readouterr().out

    assert main(["switch", *BACK, *about]) == 0
    said = capsys.readouterr().out
    assert "starting container 950 again" in said and "is with the host and its containers" in said
    assert lab.run("pct status 950").stdout == "status: running\n"


def test_a_vm_under_ha_is_waited_for(lab: Lab, about: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`qm` only asks the manager, and ends at once; the VM follows, or HA tries in vain."""
    installed(lab)
    lab.run("mkdir -p $ROOT/etc/pve/ha; cat >$ROOT/etc/pve/ha/resources.cfg", stdin="vm: 103\n\tstate started\n")
    lab.fault("card-users", [OLLAMA, {"pid": 4712, "comm": "Xorg", "card": CARD, "opens": ["modeset"]}])
    assert main(["switch", *TO_VM, *about]) == 1
    seen = capsys.readouterr()
    assert "in use by Xorg (PID 4712" in seen.err and "VM 103 runs" not in seen.err
    lab.fault("card-users", [OLLAMA])
    assert main(["switch", *TO_VM, *about]) == 0
    assert "VM 103 runs, with gpus.big." in capsys.readouterr().out
    assert main(["switch", *BACK, *about]) == 0
    assert "is with the host and its containers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["small", "--to", "vm:gaming"], "it has use: lxc; shared cards of the settings: pve: big"),
        (["other", "--to", "containers"], "no such card"),
        (["big", "--to", "containers", "--host", "pve2"], "shared cards of the settings: pve: big"),
    ],
)
def test_what_can_not_be_switched_is_one_error_before_any_connection(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    gpus = {"big": {"match": "10de:2b85", "use": "shared"}, "small": {"match": "10de:2684", "use": "lxc"}}
    ssh = {
        "hostKey": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl",
        "password": "a",
    }
    host = {"address": "192.0.2.1", "ssh": ssh, "gpus": gpus, "nvidia": {"driver": "580"}}
    vms = {"gaming": {"host": "pve", "vmid": 103, "gpus": ["big"]}}
    file = tmp_path / "Pulumi.lab.yaml"
    file.write_text(yaml.safe_dump({"config": {"homelab:hosts": {"pve": host}, "homelab:vms": vms}}))
    assert main(["switch", *words, "--config-file", str(file)]) == 2
    assert said in capsys.readouterr().err
