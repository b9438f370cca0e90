"""A preview works without the host, and without the key to it; with the host in reach it shows the plan and refuses early."""

from __future__ import annotations

import copy
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import Stack, out_of_reach, refusal
from tests.e2e.test_failures import one_message
from tests.e2e.test_gpu_vm import MAPPING, SANDBOX, vms


def test_the_plan_is_printed_and_nothing_is_changed_and_an_owner_who_restarts_the_host_is_told_when_and_what_went_wrong(
    stack_on: Callable[..., Stack],
) -> None:
    stack = stack_on("rtx5090", vms=SANDBOX)
    # A secret in plain text is refused until the command that is named has encrypted it.
    before = copy.deepcopy(stack.config)
    secret, ssh = stack.lab.connection["password"], stack.host["ssh"]
    stack.host["ssh"] = {"port": ssh["port"], "hostKey": ssh["hostKey"], "password": secret}
    place = "homelab:hosts.pve.ssh.password"
    refused = stack.up(ok=False)
    one_message(refused, f"pulumi config set --stack lab --secret --path '{place}'")
    assert secret not in refused.output
    file = stack.folder / "Pulumi.lab.yaml"
    subprocess.run(
        [str(stack.engine.pulumi), "config", "set", "--stack", "lab", "--secret", "--path", place, "--config-file", str(file)]
        + ["--cwd", str(stack.project)],
        input=secret, text=True, env=stack.environment, check=True, capture_output=True,
    )  # fmt: skip
    stack.config = yaml.safe_load(file.read_text())["config"]
    assert secret not in file.read_text()
    stock, mark = stack.lab.snapshot("etc", "boot", "var", "run"), stack.lab.mark()
    preview = stack.preview()
    assert secret not in preview.output
    stack.config = before
    for said in (
        "-> quiet amd_iommu=on iommu=pt homelab.vfio=0000:01:00.0=10de:2b85,0000:01:00.1=10de:22e8",
        "writes /etc/default/grub.d/zz-homelab-iommu.cfg",
        "0000:01:00.0 [10de:2b85] nouveau -> vfio-pci",
        "IOMMU group 14, with it: ",
        "reboot: one, because",
        "it stops VM 103 (Sandbox)",
        "VM 103 (Sandbox), running: it is shut down and started again\n        hostpci0: not there -> mapping=rtx5090,pcie=1",
    ):
        assert said in preview.output, said
    assert "#!/bin/sh" not in preview.output  # what this program writes is named, and not shown
    assert len(stack.lab.connections(since=mark)) == 1
    assert stack.lab.snapshot("etc", "boot", "var", "run") == stock

    # Two VMs that can't have it, for a reason each.
    stack.lab.run("qm stop 103; qm set 103 --delete machine; qm start 103")
    stock = stack.lab.snapshot()
    vms(stack)["nobody"] = {"host": "pve", "vmid": 555, "gpus": []}
    message = refusal(stack)
    assert "machine model q35" in message, message
    assert "no such VM on the host; there are: 103 (Sandbox)" in message, message
    assert stack.lab.snapshot() == stock
    assert len(stack.lab.boots()) == 1

    # No host in reach.
    del stack.config["homelab:vms"]
    port, stack.host["ssh"]["port"] = stack.host["ssh"]["port"], 1
    without = stack.preview()
    assert ("create", "pve-bind") in without.planned
    assert "can't be reached" in without.output

    # Its owner restarts it: first into another entry, so that the trial is over.
    stack.host["ssh"]["port"], stack.host["reboot"] = port, "manual"
    one_message(stack.up(ok=False), "reboot pve when it suits you", "VM 103 (Sandbox)")
    assert len(stack.lab.boots()) == 1
    stack.lab.machine.next_entry = "0"
    stack.lab.reboot()
    one_message(stack.up(ok=False), "on trial", "pulumi up --refresh")
    one_message(stack.up("--refresh", ok=False), "reboot pve when it suits you")
    stack.lab.reboot()
    assert "pve-booted" in stack.up("--refresh").changed
    assert stack.machine.drivers()["0000:01:00.0"] == "vfio-pci"


def test_previews_after_the_first_up_ask_the_host_only_where_they_have_to_and_what_they_say_of_a_change_is_what_up_makes(
    converged: Callable[..., Stack], tmp_path: Path, subtests: pytest.Subtests
) -> None:
    stack = converged("rtx5090")
    mark = stack.lab.mark()
    # Without changes the host is left in peace, in reach or not, ...
    with subtests.test("without changes the host isn't asked"):
        assert stack.preview().planned == []
        assert stack.lab.connections(since=mark) == []
    # ... unless told otherwise.
    stack.config["homelab:plan"] = "always"
    with subtests.test("unless told otherwise"):
        assert "reboot: not needed" in stack.preview().output
        assert len(stack.lab.connections(since=mark)) == 1
    stack.config["homelab:plan"] = "auto"

    # A setting with which the plan stays as it is makes nothing else look changed.
    card = stack.host["gpus"]["rtx5090"]
    stack.host["gpus"]["rtx5090"] = card | {"allowConsole": True}
    preview = stack.preview()
    with subtests.test("a setting that changes no plan"):
        assert preview.planned == [("update", "pve-probe")] and "reboot: not needed" in preview.output
    stack.host["gpus"]["rtx5090"] = card

    # A pull request hasn't got the key, and that is no change.
    key = stack.host["ssh"]["privateKeyFile"]
    stack.host["ssh"]["privateKeyFile"] = str(tmp_path / "not-in-a-pull-request")
    with subtests.test("a pull request has no key"):
        assert stack.preview().planned == []
    stack.host["iommu"] = {"passthrough": False}
    with subtests.test("a change in a pull request"):
        assert "previewing without the key to the host" in stack.preview().output
    stack.host["ssh"]["privateKeyFile"] = key
    del stack.host["iommu"]

    # A change that takes no reboot: a card is reset, and stays awake, as the settings say until they say nothing (below).
    folder = stack.lab.root / "sys/bus/pci/devices/0000:01:00.0"
    # That the first of two functions lists the bus is no more than the kernel's order of looking at them: it can't be given back.
    had = {"reset_method": "flr", "d3cold_allowed": "1", "power/control": "auto"}
    (folder / "power").mkdir(exist_ok=True)
    for name in ("d3cold_allowed", "power/control"):
        (folder / name).write_text(f"{had[name]}\n")
    assert (folder / "reset_method").read_text() == "flr bus\n"
    card, mark = stack.host["gpus"]["rtx5090"], stack.lab.mark()
    card |= {"reset": "flr", "keepAwake": True}
    assert stack.up().changed >= {"pve-values"}
    with subtests.test("a change without a reboot"):
        assert {name: (folder / name).read_text().strip() for name in had} == {
            "reset_method": "flr",
            "d3cold_allowed": "0",
            "power/control": "on",
        }
        assert stack.lab.boots(since=mark) == []

    # A change that takes one: no card in the settings any more. What is said of other words: tests/unit/test_reboot_words.py,
    # tests/agent/test_reboot_required.py.
    stack.host["gpus"] = {}
    preview = stack.preview()
    why = "reboot: one, because no card is for a VM any more"
    with subtests.test("why it reboots, and what that stops"):
        for said in (why, "it stops VM 103 (Sandbox)", "rebuilds /boot/grub/grub.cfg"):
            assert said in preview.output, preview.output
    named = set(re.findall(r"(?:writes|changes|removes) (/etc/\S+)", preview.output))
    before = stack.lab.snapshot("etc")
    up = stack.up()  # which holds its sentence against the boots that follow
    with subtests.test("what it says is what is made"):
        assert why in up.output
        assert {name for _, name in preview.planned} == up.changed
        assert stack.machine.drivers()["0000:01:00.0"] == "nouveau"
        assert {name: (folder / name).read_text().strip() for name in had} == had
    after = stack.lab.snapshot("etc")
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    changed -= {MAPPING}  # Proxmox VE's own, which it leaves without an entry
    with subtests.test("the files that it names are those that change"):
        assert named == {f"/{path}" for path in changed if "file" in {*before.get(path, ()), *after.get(path, ())}}

    # Nobody is asked if that was said, and a host out of reach is no obstacle.
    stack.host["iommu"], stack.config["homelab:plan"], mark = {"passthrough": False}, "never", stack.lab.mark()
    with subtests.test("nobody is asked"):
        assert ("update", "pve-cmdline") in stack.preview().planned
        assert stack.lab.connections(since=mark) == []
    stack.config["homelab:plan"] = "auto"
    out_of_reach(stack.lab)
    with subtests.test("out of reach"):
        assert ("update", "pve-cmdline") in stack.preview().planned
    # ... unless it is to be read.
    del stack.host["iommu"]
    stack.config["homelab:plan"] = "always"
    refused = stack.preview(ok=False)
    with subtests.test("out of reach, and to be read"):
        assert refused.message.count("wanted:") == 1 and "Traceback" not in refused.output, refused.output
