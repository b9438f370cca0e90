"""NVIDIA's stack in every machine of a plan, judged before the host is changed: over SSH, on a lab with Tesla P4, containers of Debian 13 and VMs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from homelab.errors import HomelabError, NoPythonError
from homelab.judged import text
from homelab.judged.tree import Settings, Tree
from homelab.reading import planning, systems
from homelab.remote.ssh import _failed
from homelab.settings import Container, Host, Vm
from lab import Lab
from remote_scripts.tools.plain import of_plain
from tests.lab.stack_kit import host_of

SCENARIOS = Path(__file__).parents[2] / "lab/scenarios"
CARDS = {f"p4{name}": {"match": "10de:1bb3", "address": place, "use": use} for name, place, use in (
    ("a", "01:00", "lxc"), ("b", "02:00", "lxc"), ("c", "41:00", "vm"), ("d", "42:00", "vm"),
)}  # fmt: skip
CONF = "agent: 1\nbios: ovmf\nefidisk0: local-lvm:vm-0-disk-0,efitype=4m,size=4M\nmachine: q35\nmemory: 8192\nnet0: virtio=BC:24:11:00:00:{0},bridge=vmbr0\n"
VMS = (
    {"id": 110, "name": "locked", "conf": CONF.format(10) + "ostype: l26\n", "system": {"secure-boot": True}},
    {"id": 111, "name": "windows", "conf": CONF.format(11) + "ostype: win11\n"},
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("gate")
    written = yaml.safe_load((SCENARIOS / "tesla-p4.yaml").read_text(encoding="utf-8"))
    written["guests"] += [{"kind": "vm", "running": True, **vm} for vm in VMS]
    (folder / "p4.yaml").write_text(yaml.safe_dump(written), encoding="utf-8")
    with Lab.start(str(folder / "p4.yaml"), state=folder / "lab") as started:
        started.wait_guest(110, 60)
        yield started


def host(lab: Lab, **nvidia: Any) -> Host:
    """The lab's host with its four cards, which gets branch 580."""
    about = host_of(lab).model_dump(mode="json", by_alias=True, exclude_unset=True)
    return Host.model_validate({**about, "gpus": CARDS, "nvidia": {"driver": "580", **nvidia}})


def planned(lab: Lab, vms: dict[str, Vm] | None = None, containers: dict[str, Container] | None = None) -> Tree:
    return planning.planned(Settings("pve", host(lab), vms or {}, containers or {}), is_changed=True)


def against(lab: Lab, vms: dict[str, Vm] | None = None, **containers: dict[str, Any]) -> list[HomelabError]:
    """What an `up` and a preview refuse."""
    asked = {
        name: Container.model_validate({"host": "pve", "ctid": 301 + number, "gpus": ["p4a"], "nvidia": nvidia})
        for number, (name, nvidia) in enumerate(containers.items())
    }
    return planned(lab, vms, asked).refusals


def test_each_container_that_cannot_have_its_cuda_is_named_at_once(lab: Lab) -> None:
    mark = lab.mark()
    errors = against(lab, one={"cuda": "12.9"}, two={"cuda": "13.1"}, three={})
    assert {error.wanted.partition(":")[0] for error in errors} == {"containers.one", "containers.two"}
    # What the cards alone forbid apt isn't asked for.
    assert ["cuda-toolkit-12-" in error.found for error in errors if "two" not in error.wanted] == [True]
    assert not [one for one in lab.commands(mark) if "apply" in one]


def test_what_all_layers_would_change_is_asked_at_once(lab: Lab) -> None:
    """Each way to the host, with the agent sent along, takes longer than a plan."""
    mark = lab.mark()
    found = planned(lab)
    lab.wait_idle()
    # A process that has asked Proxmox VE before has a ticket.
    commands = [one for one in lab.commands(mark) if "make_ticket" not in one["command"]]
    assert len(lab.connections(mark)) == 1 and len(commands) == 4, "the host, its stack, its apt, the plans"
    paths = " ".join(file.what for file in found.files)
    assert "iommu.cfg" in paths and "initramfs" in paths and found.reboot and found.reboot.reboot == "yes"


def test_a_plan_is_made_with_what_the_kernel_says_of_cards(lab: Lab) -> None:
    line = "pcieport 0000:01:00.0: AER: device recovery failed"
    (lab.state / "root/dev/kmsg").write_text(f"{line}\n", encoding="utf-8")
    assert line in planned(lab).facts.kernel_log


def vm(lab: Lab, vmid: int, **nvidia: Any) -> dict[str, Vm]:
    """A VM with a card, which SSH reaches."""
    guest = lab.guest(vmid) if vmid == 110 else {"host": "127.0.0.1", "port": 9, **lab.guest(110)}
    ssh = {name: guest[name] for name in ("port", "hostKey", "privateKeyFile")}
    about = {"host": "pve", "vmid": vmid, "gpus": ["p4c"], "address": guest["host"], "ssh": ssh, "nvidia": nvidia}
    return {"box": Vm.model_validate(about)}


def test_a_vm_that_runs_is_looked_into_before_the_host_is_rebooted_for_its_card(lab: Lab) -> None:
    errors = against(lab, vm(lab, 110, driver="580", containerToolkit="docker"))
    assert [error.found for error in errors] == [
        "Secure Boot is on, and DKMS's key isn't enrolled",
        "installed: no container runtime",
    ]


def test_a_vm_with_windows_is_not_asked_for_and_its_owner_is_told(lab: Lab) -> None:
    (error,) = against(lab, vm(lab, 111, driver="580"))
    assert error.found.startswith("Windows") and "leave vms.box.nvidia out" in error.next


def test_a_vm_that_does_not_answer_is_no_reason_to_refuse_and_is_said(lab: Lab) -> None:
    lab.fault("guest-unreachable", 110)
    try:
        found = planned(lab, vm(lab, 110, driver="580"))
    finally:
        lab.fault("guest-unreachable", None)
    assert any("vms.box was not looked into" in line for line in found.unread)


def test_a_vm_without_python_is_refused_with_what_installs_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(form: Any, answer: dict[str, object], what: str) -> Any:
        if str(answer["running"]).endswith("-pve"):
            return of_plain(form, answer, what)
        raise _failed("read read_system", "", "sh: 1: /usr/bin/python3: not found\n", 127)

    monkeypatch.setattr(systems, "of_plain", parse)
    (error,) = against(lab, vm(lab, 110, driver="580"))
    assert error.wanted == "Python in vms.box" and isinstance(error, NoPythonError)


def test_a_preview_says_where_each_driver_comes_from(lab: Lab) -> None:
    """NVIDIA's repository for Debian 13, which host and containers have, begins with 590."""
    container = Container.model_validate({"host": "pve", "ctid": 301, "gpus": ["p4a"], "nvidia": {}})
    found = planned(lab, {}, {"one": container})
    lines = [line for line in text.of_guests(found) if "NVIDIA's stack" in line]
    assert ["driver 580.178.04" in line and ", by NVIDIA's installer, " in line for line in lines] == [True, True]
