"""A preview works without the host, and without the key to it; with the host in reach it shows the plan and refuses early."""

from __future__ import annotations

import copy
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import Stack, init_at_a_terminal, out_of_reach, refusal
from tests.e2e.person import ENTER
from tests.e2e.test_gpu_vm import MAPPING, SANDBOX, vms
from tests.sampling import sample


def test_the_plan_is_printed_and_nothing_is_changed(
    stack_on: Callable[..., Stack],
) -> None:
    stack = stack_on("rtx5090", vms=SANDBOX)
    # A secret in plain text is refused until the command that is named has encrypted it.
    before = copy.deepcopy(stack.config)
    secret, ssh = stack.lab.connection["password"], stack.host["ssh"]
    stack.host["ssh"] = {"port": ssh["port"], "hostKey": ssh["hostKey"], "password": secret}
    place = "homelab:hosts.pve.ssh.password"
    refused = stack.up(ok=False)
    assert f"pulumi config set --stack lab --secret --path '{place}'" in refused.message
    assert secret not in refused.output
    assert [refused.message.count(part) for part in ("wanted:", "found:", "why:", "next:")] == [1, 1, 1, 1]
    file = stack.folder / "Pulumi.lab.yaml"
    subprocess.run(
        [str(stack.engine.pulumi), "config", "set", "--stack", "lab", "--secret", "--path", place, "--config-file", str(file)]
        + ["--cwd", str(stack.project)],
        input=secret, text=True, env=stack.environment, check=True, capture_output=True,
    )  # fmt: skip
    stack.config = yaml.safe_load(file.read_text())["config"]
    assert secret not in file.read_text()
    assert secret not in stack.preview().output
    stack.config = before
    stock, mark = stack.lab.snapshot("etc", "boot", "var", "run"), stack.lab.mark()
    preview = stack.preview()
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
    stack.host["ssh"]["port"] = 1
    without = stack.preview()
    assert ("create", "pve-bind") in without.planned
    assert "can't be reached" in without.output


def test_a_preview_after_the_first_up_asks_the_host_only_where_it_has_to_and_does_without_it_and_without_its_key(
    converged: Callable[..., Stack], tmp_path: Path
) -> None:
    stack = converged("rtx5090")
    mark = stack.lab.mark()
    # Without changes the host is left in peace, in reach or not, ...
    assert stack.preview().planned == []
    assert stack.lab.connections(since=mark) == []
    # ... unless told otherwise.
    stack.config["homelab:plan"] = "always"
    assert "reboot: not needed" in stack.preview().output
    assert len(stack.lab.connections(since=mark)) == 1
    stack.config["homelab:plan"] = "auto"

    # A setting with which the plan stays as it is makes nothing else look changed.
    card = stack.host["gpus"]["rtx5090"]
    stack.host["gpus"]["rtx5090"] = card | {"allowConsole": True}
    preview = stack.preview()
    assert preview.planned == [("update", "pve-probe")] and "reboot: not needed" in preview.output
    stack.host["gpus"]["rtx5090"], mark = card, stack.lab.mark()

    # A pull request hasn't got the key, and that is no change.
    key = stack.host["ssh"]["privateKeyFile"]
    stack.host["ssh"]["privateKeyFile"] = str(tmp_path / "not-in-a-pull-request")
    assert stack.preview().planned == []
    stack.host["iommu"] = {"passthrough": False}
    assert "previewing without the key to the host" in stack.preview().output
    stack.host["ssh"]["privateKeyFile"] = key

    # With a change: nobody is asked if that was said, and a host out of reach is no obstacle.
    stack.config["homelab:plan"] = "never"
    assert ("update", "pve-cmdline") in stack.preview().planned
    assert stack.lab.connections(since=mark) == []
    stack.config["homelab:plan"] = "auto"
    out_of_reach(stack.lab)
    assert ("update", "pve-cmdline") in stack.preview().planned
    # ... unless it is to be read.
    del stack.host["iommu"]
    stack.config["homelab:plan"] = "always"
    refused = stack.preview(ok=False)
    assert refused.message.count("wanted:") == 1 and "Traceback" not in refused.output, refused.output


def test_a_preview_says_what_reboot_a_change_of_settings_takes_and_up_makes_that_one(
    converged: Callable[..., Stack],
) -> None:
    """With no card in the settings any more. What is said of other words: tests/unit/test_reboot_words.py, tests/agent/test_reboot_required.py."""
    stack = converged("rtx5090")
    stack.host["gpus"] = {}
    preview = stack.preview()
    why = "reboot: one, because no card is for a VM any more"
    for said in (why, "it stops VM 103 (Sandbox)", "rebuilds /boot/grub/grub.cfg"):
        assert said in preview.output, preview.output
    named = set(re.findall(r"(?:writes|changes|removes) (/etc/\S+)", preview.output))
    before = stack.lab.snapshot("etc")
    up = stack.up()  # which holds its sentence against the boots that follow
    assert why in up.output
    assert {name for _, name in preview.planned} == up.changed
    assert stack.drivers()["0000:01:00.0"] == "nouveau"
    after = stack.lab.snapshot("etc")
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    changed -= {MAPPING}  # Proxmox VE's own, which it leaves without an entry
    assert named == {f"/{path}" for path in changed if "file" in {*before.get(path, ()), *after.get(path, ())}}


# Scenario -> what the refusal names; the cards that `homelab init` asks for.
REFUSED = {
    "crowded-group": ("nvme0n1", ["rtx3060-lite-hash-rate"]),
    "nic-in-group": ("network card", ["rtx3060-lite-hash-rate"]),
    "firmware-off": ("switch on Intel VT-d", ["rtx3060"]),
    "z370-two-cards-one-group": ("graphics card", ["rtx2060-rev-a"]),
    "one-to-one": ("mapped 1:1", ["rtx5070-ti"]),
}


# All ask the same gates (homelab/remote/planning.py); an `up` that is refused: tests/e2e/test_failures.py. `init` tries one, another with another seed. What the gates say of each of these hosts:
# tests/lab/test_bound_hosts.py (test_a_host_that_would_be_brought_down_is_refused).
@pytest.mark.parametrize("scenario", sample(list(REFUSED), 1, "refused by init"))
def test_what_would_bring_the_host_down_is_refused_by_init_at_a_terminal(
    untouched: Callable[..., Stack], scenario: str
) -> None:
    stack = untouched(scenario)
    stock, mark = stack.lab.snapshot(), stack.lab.mark()
    said, cards = REFUSED[scenario]
    stack.config = {}
    stack.write_config()
    asked = [answer for card in cards for answer in ((f"{card}: ", f"103{ENTER}"), ("Who gets it", f"nobody{ENTER}"))]
    shown = " ".join(init_at_a_terminal(stack, *asked, status=1).split())
    assert said in shown and "No card was given to anybody" in shown
    assert stack.lab.snapshot() == stock
    assert stack.lab.boots(since=mark) == []
