"""`homelab init` on a lab's host, over SSH: from an address and a password to settings, and again.

Pulumi is a stand-in here, which notes how it is called; tests/e2e/test_init.py has the real one.
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import asyncssh
import pytest
import yaml

from homelab.cli import conversation, project
from homelab.cli.command_line import main
from homelab.cli.pulumi import Pulumi
from homelab.host import gates
from homelab.init import settings as init_settings
from homelab.remote import first_contact
from lab import Lab
from lab.scenario import SCENARIO_FOLDER
from tests import agent_kit, sampling
from tests.conftest import PROJECT
from tests.e2e.test_init import CONTAINERS, VMS
from tests.lab import test_way_in
from tests.lab.test_bound_hosts import REFUSED
from tests.lab.test_real_hosts import read
from tests.unit import hosts

# What `init` calls of Pulumi, as it answers: a stack's file gets its salt.
PULUMI = """#!{python}
import json, os, sys
arguments = sys.argv[1:]
with open(os.environ["FAKE_PULUMI_LOG"], "a") as log:
    log.write(json.dumps({{"arguments": arguments, "environment": dict(os.environ)}}) + "\\n")
if arguments[:1] == ["whoami"]:
    if "FAKE_LOGGED_OUT" in os.environ: sys.exit(3)
    print("User: me\\nBackend URL: file://~")
if arguments[:1] == ["plugin"] and "FAKE_OFFLINE" in os.environ: sys.exit("warning: Error downloading plugin: no such host")
if arguments[:2] == ["stack", "--show-name"]: sys.exit("no stack selected")
if arguments[:2] == ["stack", "ls"]: print(json.dumps([{{"name": name}} for name in os.environ.get("FAKE_STACKS", "").split()]))
if arguments[:3] == ["stack", "select", "--create"]:
    with open("Pulumi.homelab.yaml") as file: text = file.read()
    with open("Pulumi.homelab.yaml", "a") as file: file.write("" if "encryptionsalt" in text else "encryptionsalt: v1:salt\\n")
"""


@dataclass
class Desk:
    """A person's machine: a home, a project, a pulumi; and the host that it is about."""

    folder: Path
    lab: Lab
    out: str = ""
    err: str = ""

    @property
    def file(self) -> Path:
        return self.folder / "Pulumi.homelab.yaml"

    @property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load(self.file.read_text())["config"]
        return found

    @property
    def pulumi(self) -> list[dict[str, Any]]:
        log = self.folder / "pulumi.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    @property
    def where(self) -> list[str]:
        return [f"{self.lab.connection['host']}:{self.lab.connection['port']}"]

    @property
    def key(self) -> list[str]:
        return ["--host-key", self.lab.connection["hostKey"]]

    @property
    def authorized(self) -> Path:
        """The host's file with the keys that log in, to which the one in root's home is a link."""
        return self.lab.root / "etc/pve/priv/authorized_keys"

    @property
    def keys(self) -> list[str]:
        """Those that `init` has put there."""
        return [line for line in self.authorized.read_text().splitlines() if line.endswith(" homelab")]


@pytest.fixture
def desk(
    labs: Callable[[str], Lab], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Desk]:
    lab = labs(getattr(request, "param", "rtx5090"))
    (tmp_path / "home").mkdir()
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "pulumi"
    program.write_text(PULUMI.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "Pulumi.yaml").write_text((PROJECT / "Pulumi.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_PULUMI_LOG", str(tmp_path / "pulumi.jsonl"))
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", "geheim")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("HOMELAB_PASSWORD", lab.connection["password"])
    desk = Desk(tmp_path, lab)
    before = desk.authorized.read_text()
    yield desk
    desk.authorized.write_text(before)


def run(desk: Desk, capsys: pytest.CaptureFixture[str], *arguments: str) -> int:
    status = main(["init", *arguments])
    desk.out, desk.err = capsys.readouterr()
    return status


def answering(monkeypatch: pytest.MonkeyPatch, *answers: str, stops_at: int | None = None) -> None:
    """Answers one question after the other, as lines; Ctrl-C at one of them."""
    lines = iter([*answers])

    class Answers:
        asked = 0

        def isatty(self) -> bool:
            return False

        def readline(self) -> str:
            self.asked += 1
            if self.asked == stops_at:
                raise KeyboardInterrupt
            return "".join(f"{line}\n" for line in [next(lines, None)] if line is not None)

    monkeypatch.setattr(sys, "stdin", Answers())


CARD = ("--card", "rtx5090=103", "--yes")


def test_from_an_address_and_a_password_to_settings(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = desk.lab.snapshot()
    assert run(desk, capsys, *desk.where, *desk.key, *CARD) == 0, desk.out
    assert desk.config["homelab:hosts"]["pve"].keys() == {"address", "ssh", "gpus"}
    assert desk.config["homelab:vms"] == {"sandbox": {"host": "pve", "vmid": 103, "gpus": ["rtx5090"]}}
    # The key that was made lets the next run in, and no password is in the settings.
    assert desk.config["homelab:hosts"]["pve"]["ssh"]["privateKeyFile"] == "~/.ssh/homelab_ed25519"
    made = desk.folder / "home/.ssh/homelab_ed25519"
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    line = asyncssh.read_private_key(made).export_public_key().decode().split()[1]
    assert desk.authorized.read_text().count(line) == 1
    put = {path for path, entry in desk.lab.snapshot().items() if stock.get(path) != entry}
    assert put == {"etc/pve/priv/authorized_keys"} and desk.lab.connection["password"] not in desk.out + desk.err
    assert [call["arguments"][0] for call in desk.pulumi] == ["stack", "whoami", "plugin", "stack"]
    assert not any("HOMELAB_PASSWORD" in call["environment"] for call in desk.pulumi)

    # A second run finds everything, and a card goes on as it is.
    keys, text = desk.authorized.read_text(), desk.file.read_text()
    monkeypatch.setenv("FAKE_OFFLINE", "1")
    assert run(desk, capsys, "pve", *CARD) == 0, desk.out
    assert desk.authorized.read_text() == keys and desk.file.read_text() == text
    # What `up` would lack is said.
    said = desk.out.partition("Fetching Pulumi's plugin, unless it is there; at most 300 s ...")[2]
    assert "can't be fetched: warning: Error downloading plugin: no such host" in said
    assert f"`pulumi plugin install resource command {version('pulumi-command')} --file" in said
    # And one that is to give nothing says who has what.
    assert run(desk, capsys, "pve", "--yes") == 1
    assert "rtx5090 → VM 103 (Sandbox), running" in desk.out and "homelab init pve --card CARD=WHO" in desk.out


def test_an_empty_folder_becomes_a_project(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the folder's name; a stack of that name that another folder made isn't taken."""
    folder = desk.folder / "my gpu"
    folder.mkdir()
    (desk.folder / "Pulumi.yaml").unlink()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FAKE_LOGGED_OUT", "1")
    monkeypatch.setenv("FAKE_STACKS", "other homelab")
    assert run(desk, capsys, *desk.where, *desk.key, *CARD) == 2
    assert "keeps a stack homelab of a project my-gpu already" in desk.out and not any(folder.iterdir())
    monkeypatch.setenv("FAKE_STACKS", "other")
    assert run(desk, capsys, *desk.where, *desk.key, *CARD) == 0, desk.out
    project = yaml.safe_load((folder / "Pulumi.yaml").read_text())
    assert (
        project["name"] == "my-gpu"
        and project["backend"] == {"url": "file://~?metadata=skip"}
        and "config" not in project
    )
    assert project["runtime"]["options"]["virtualenv"] == ".venv"
    assert {path.name for path in folder.iterdir()} == {
        ".gitignore", ".venv", "Pulumi.yaml", "Pulumi.homelab.yaml", "__main__.py", "docs", "provider"
    }  # fmt: skip
    assert desk.pulumi[-1]["environment"]["PULUMI_BACKEND_URL"] == "file://~?metadata=skip"
    (folder / "Pulumi.yaml").unlink()
    assert run(desk, capsys, *desk.where, *desk.key, *CARD) == 2
    assert "run it in a new folder" in desk.out


def test_what_is_shown_is_what_is_done(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(desk, capsys, *desk.where, *desk.key, *CARD, "--dry-run") == 0, desk.out
    shown = desk.out
    assert "hostpci0: not there -> mapping=rtx5090,pcie=1" in shown and not desk.file.exists() and not desk.keys
    assert {call["arguments"][0] for call in desk.pulumi} == {"stack", "whoami"}
    assert run(desk, capsys, *desk.where, *desk.key, *CARD) == 0, desk.out
    text = desk.file.read_text().partition("encryptionsalt")[0]
    assert "".join(f"  {line}\n" for line in text.splitlines()) in shown


@pytest.mark.parametrize("desk", ["containers-pve8"], indirect=True)
def test_a_card_for_a_container_and_later_another_one(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(desk, capsys, *desk.where, *desk.key, "--card", "rtx4060=210", "--yes") == 0, desk.out
    assert desk.config["homelab:containers"]["jellyfin"] == {
        "host": "pve", "ctid": 210, "gpus": ["rtx4060"], "nvidia": {}
    }  # fmt: skip
    # The other card, later: the first one's settings stay.
    before = desk.file.read_text()
    assert run(desk, capsys, "pve", "--card", "04:00=211", "--yes") == 0, desk.out
    assert [line for line in before.splitlines() if line not in desk.file.read_text().splitlines()] == []
    assert desk.config["homelab:containers"]["ai-lab"]["nvidia"] == {}


@pytest.mark.parametrize("desk", ["tesla-p4"], indirect=True)
def test_what_is_proposed_for_old_cards_in_new_containers_works(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    """CUDA 13 no longer builds for Pascal, and NVIDIA's repository for Debian 13 has no other: the driver alone."""
    assert run(desk, capsys, *desk.where, *desk.key, "--card", "01:00=301", "--yes") == 0, desk.out
    assert desk.config["homelab:hosts"]["pve"]["nvidia"] == {"driver": "580"}
    (name,) = desk.config["homelab:containers"]
    assert desk.config["homelab:containers"][name]["nvidia"] == {}
    before = desk.file.read_text()
    offered = "cuda-toolkit-12-9 isn't offered; there is cuda-toolkit-13-1"
    refused = [
        ("13.1", "nvcc can't build for Pascal", 'set nvidia.cuda: "12.9"'),
        ("12.9", offered, "leave nvidia.cuda out: no"),
    ]
    for cuda, found, next in sampling.sample(refused, 1, "CUDA for old cards"):
        assert run(desk, capsys, "pve", "--set", f"containers.{name}.nvidia.cuda='{cuda}'", "--yes") == 2
        assert found in desk.out and desk.file.read_text() == before
        assert next in desk.out


@pytest.mark.parametrize("desk", ["bound-by-hand"], indirect=True)
def test_nvidias_software_inside_a_vm(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    """It has no Docker, which is seen before anything is written."""
    guest = desk.lab.guest(103)
    inside = {
        "address": guest["host"], "ssh": json.dumps({"port": guest["port"], "hostKey": guest["hostKey"], "privateKeyFile": guest["privateKeyFile"]}),
        "nvidia": '{driver: "580", cuda: "12.8", containerToolkit: docker}',
    }  # fmt: skip
    sets = [word for key, value in inside.items() for word in ("--set", f"vms.sandbox.{key}={value}")]
    asked = [*desk.where, *desk.key, *CARD, *sets]
    assert run(desk, capsys, *asked) == 2
    assert "installed: no container runtime" in desk.out and not desk.file.exists()
    assert run(desk, capsys, *asked, "--set", "vms.sandbox.nvidia.docker=install") == 0, desk.out
    vm = desk.config["homelab:vms"]["sandbox"]
    assert vm["address"] == guest["host"] and vm["ssh"]["hostKey"] == guest["hostKey"]
    assert vm["nvidia"] == {"driver": "580", "cuda": "12.8", "containerToolkit": "docker", "docker": "install"}


@pytest.mark.parametrize("desk", ["bound-by-hand"], indirect=True)
def test_nvidias_driver_inside_a_vm_whose_guest_is_asked_for(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = desk.lab.guest(103)
    where = f"{guest['host']}:{guest['port']}"
    asked = [*desk.where, *desk.key, "--card", "rtx5090=103", "--nvidia"]
    assert run(desk, capsys, *asked, "--yes", "--guest", "104=192.0.2.1") == 2
    assert "--guest 104: no VM that gets NVIDIA's driver; these do: 103" in desk.out
    assert run(desk, capsys, *asked, "--yes") == 2 and "Another answer: --guest 103=[USER@]ADDRESS" in desk.out
    assert run(desk, capsys, *asked, "--yes", "--guest", "103=none", "--dry-run") == 0
    assert "NVIDIA's driver is installed in VM 103" not in desk.out
    answering(monkeypatch, "?", "127.0.0.1:1", where, *["no"] * 9)
    assert run(desk, capsys, *asked) == 2
    assert (
        "in VM 103 (Sandbox) over SSH, at the VM's own address, not the host's. USER is root, or has sudo" in desk.out
    )
    assert "an SSH server at 127.0.0.1:1" in desk.out and "takes none of your keys: `ssh-copy-id root@" in desk.out
    key = desk.folder / "home" / ".ssh" / "id_ed25519"
    key.parent.mkdir(mode=0o700)
    key.write_bytes(Path(guest["privateKeyFile"]).read_bytes())
    answering(monkeypatch, where, "y")
    assert run(desk, capsys, *asked) == 0, desk.out
    assert "NVIDIA's driver is installed in VM 103" in desk.out
    assert f"[{guest['host']}]" in desk.out and "which counts as this guest's from now on" in desk.out
    vm = desk.config["homelab:vms"]["sandbox"]
    ssh = {"user": "root", "port": guest["port"], "hostKey": guest["hostKey"], "privateKeyFile": "~/.ssh/id_ed25519"}
    assert (vm["address"], vm["ssh"], vm["nvidia"]) == (guest["host"], ssh, {"driver": "580"})


def test_nvidias_driver_in_a_vm_that_isnt_made_yet_comes_after_the_first_up(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*desk.where, *desk.key, "--card", "rtx5090=new-vm", "--yes", "--dry-run"]
    then = "the driver comes after the first `pulumi up`: `homelab init pve --card rtx5090=100 --nvidia`"
    tries = [(0, ["--nvidia"]), (2, ["--guest", "100=192.0.2.1"]), (2, ["--set", "vms.ubuntu.nvidia.cuda=13.0"])]
    for status, options in tries:
        assert run(desk, capsys, *asked, *options) == status, desk.out
        assert f"VM 100 (ubuntu) isn't made yet: {then}" in " ".join(desk.out.split())


def test_what_up_refuses_for_a_vm_isnt_preselected_and_what_it_meets_is_said(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    conf, asked = desk.lab.root / "etc/pve/qemu-server/103.conf", [*desk.where, *desk.key, "--yes", "--dry-run"]
    text = conf.read_text()
    try:
        conf.write_text(f"{text}lock: backup\n")
        assert run(desk, capsys, *asked) == 1
        assert "rtx5090 can't go to VM 103: it is locked (backup)" in desk.out and "No card was given" in desk.out
        conf.write_text(f"{text}hostpci5: mapping=gone\n")
        desk.lab.run("qm stop 103")
        assert run(desk, capsys, *asked) == 0, desk.out
        assert "there is no mapping gone" in desk.out.partition("What `pulumi up` will do")[0]
    finally:
        desk.lab.reset()


def test_a_second_host_of_the_same_name_gets_one_of_its_own(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    other = {"address": "192.0.2.7", "ssh": {"hostKey": hosts.KEY, "agent": True}}
    desk.file.write_text("# mine\n" + yaml.safe_dump({"config": {"homelab:hosts": {"pve": other}}}))
    assert run(desk, capsys, *desk.where, *desk.key, *CARD) == 0, desk.out
    found = desk.config["homelab:hosts"]
    assert found["pve"] == other
    assert (found["pve-2"]["node"], found["pve-2"]["address"]) == ("pve", desk.lab.connection["host"])
    assert desk.config["homelab:vms"]["sandbox"]["host"] == "pve-2"


def test_a_key_that_cant_be_put_there_leaves_nothing(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    before = desk.authorized.read_text()
    desk.authorized.unlink()
    desk.authorized.mkdir()
    assert run(desk, capsys, *desk.where, *desk.key, *CARD) == 2
    assert "Is a directory" in desk.out and "Nothing was changed" in desk.out and not desk.file.exists()
    desk.authorized.rmdir()
    desk.authorized.write_text(before)
    assert run(desk, capsys, *desk.where, *desk.key, *CARD) == 0, desk.out


# -- refused, declined, interrupted ---------------------------------------------------------------------------------------
def test_another_host_key_than_the_one_that_was_given_is_refused(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(desk, capsys, *desk.where, "--host-key", "SHA256:" + "A" * 43, *CARD) == 2
    assert "one in between" in desk.out and "Nothing was changed." in desk.out
    # Without one, nobody has confirmed it.
    assert run(desk, capsys, *desk.where, *CARD) == 1
    assert "--host-key" in desk.out and not desk.file.exists() and desk.lab.connections()[-1]["accepted"] is False


def test_a_key_that_known_hosts_has_is_confirmed(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    connection = desk.lab.connection
    (desk.folder / "home/.ssh").mkdir()
    line = f"[{connection['host']}]:{connection['port']} {connection['hostKey']}\n"
    (desk.folder / "home/.ssh/known_hosts").write_text(line)
    assert run(desk, capsys, *desk.where, *CARD, "--dry-run") == 0, desk.out
    assert "that your known_hosts has" in desk.out


def test_a_key_of_ones_own_needs_no_password(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOMELAB_PASSWORD")
    key = desk.lab.connection["privateKeyFile"]
    assert run(desk, capsys, *desk.where, *desk.key, *CARD, "--identity", key, "--dry-run") == 0, desk.out
    assert f"privateKeyFile: {key}\n" in desk.out
    (desk.folder / "home/.ssh").mkdir()
    locked = asyncssh.generate_private_key("ssh-ed25519").export_private_key(passphrase="x")
    (desk.folder / "home/.ssh/id_ed25519").write_bytes(locked)
    assert run(desk, capsys, *desk.where, *desk.key, *CARD) == 2
    assert "No answer to “root's password" in desk.out
    assert "~/.ssh/id_ed25519 has a passphrase: " in desk.out


def test_the_agent_logs_in_and_the_settings_say_so(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOMELAB_PASSWORD")
    monkeypatch.setenv("SSH_AUTH_SOCK", str(desk.folder / "agent"))
    key = asyncssh.read_private_key(desk.lab.connection["privateKeyFile"])
    with agent_kit.agent(desk.folder / "agent", key):
        assert run(desk, capsys, *desk.where, *desk.key, *CARD) == 0, desk.out
        assert "Logged in as root with the SSH agent." in desk.out
        assert desk.config["homelab:hosts"]["pve"]["ssh"]["agent"] is True
        # A new guest gets its key, as nothing else is known.
        assert run(desk, capsys, "pve", "--card", "rtx5090=new-vm", "--yes") == 0, desk.out
    line = key.export_public_key().decode("ascii").split()[1]
    assert desk.config["homelab:vms"]["ubuntu"]["create"]["sshkeys"].split()[1] == line
    login = {"password": desk.lab.connection["password"]}
    text = yaml.safe_dump({"config": {**desk.config, "homelab:allowPlainSecrets": True}})
    desk.file.write_text(text.replace("agent: true", init_settings.flow(login)[1:-1]))
    assert run(desk, capsys, "pve", "--card", "rtx5090=?", "--yes") == 2
    assert "new-vm and new-container aren't offered: your public key isn't known" in desk.out
    assert "  new-vm: " not in desk.out


@pytest.mark.parametrize("desk", ["bound-by-hand"], indirect=True)
def test_a_user_with_sudo_sets_a_host_up(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    test_way_in.let_ops_log_in(desk.lab, by_sudo=True)
    key = desk.lab.connection["privateKeyFile"]
    try:
        assert run(desk, capsys, f"ops@{desk.where[0]}", *desk.key, *CARD, "--identity", key) == 0, desk.out
    finally:
        desk.lab.reset()
    assert "Logged in as ops" in desk.out and desk.config["homelab:hosts"]["pve"]["ssh"]["user"] == "ops"


def test_a_wrong_password_is_refused(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOMELAB_PASSWORD", "wrong")
    assert run(desk, capsys, *desk.where, *desk.key, *CARD) == 2
    assert "refuses this password" in desk.out and "PermitRootLogin" in desk.out


def test_what_up_would_refuse_is_said_and_nothing_is_done(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    """With --yes nobody opens a gate; a machine type is what the plan alone looks at."""
    assert run(desk, capsys, *desk.where, *desk.key, "--card", "09:00=103", "--yes") == 2
    assert "boot_vga" in desk.out and "Nothing was changed" in desk.out and "run `pulumi up` again" not in desk.out
    desk.lab.run("qm set 103 --delete machine")
    try:
        assert run(desk, capsys, *desk.where, *desk.key, *CARD) == 2
        assert "vms.sandbox.machine: q35" in desk.out and not desk.file.exists()
        assert run(desk, capsys, *desk.where, *desk.key, *CARD, "--set", "vms.sandbox.machine=q35") == 0, desk.out
    finally:
        desk.lab.run("qm set 103 --machine q35")


def test_a_value_of_set_is_corrected_there(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(desk, capsys, *desk.where, *desk.key, *CARD, "--set", "hosts.pve.reboot=never") == 2
    assert "correct --set, or Pulumi.homelab.yaml" in desk.out
    assert run(desk, capsys, *desk.where, *desk.key, "--card", "rtx5091=103", "--yes") == 2
    assert "the host has rtx5090 (RTX 5090 [10de:2b85] at 0000:01:00)" in desk.out and not desk.file.exists()


def test_settings_that_arent_yaml_are_told_by_their_line(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.file.write_text("config:\n  homelab:hosts: [\n")
    assert run(desk, capsys, *desk.where, *desk.key, *CARD) == 2
    assert "line 3" in desk.out and "--stack" not in desk.out


def talk(desk: Desk) -> list[str]:
    """A whole conversation: the key is right, the password, the card for VM 103, a passphrase, details, yes."""
    return ["y", desk.lab.connection["password"], "103", "p", "q", "p", "p", "?", "yes"]


def test_every_question_is_answered_by_a_line(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOMELAB_PASSWORD", "PULUMI_CONFIG_PASSPHRASE"):
        monkeypatch.delenv(name)
    answering(monkeypatch, *talk(desk))
    assert run(desk, capsys, *desk.where) == 0, desk.out
    assert "makes the SSH key ~/.ssh/homelab_ed25519, without a passphrase" in desk.out
    assert "Pulumi encrypts secrets" in desk.out and "which `pulumi destroy` needs, in ~/.pulumi." in desk.out
    assert "That was another one." in desk.out and "→ VM 103 (Sandbox), running" in desk.out
    assert (
        "radeon" not in desk.out.partition("What `pulumi up` will do")[0].lower()
    )  # the host's screen isn't asked about
    before, details, _ = desk.out.split(conversation.QUESTION)
    for detail in ("homelab:hosts:", "hostpci0: not there -> mapping=rtx5090,pcie=1"):
        assert detail in details and detail not in before
    assert "authorized_keys" in before and "export PULUMI_CONFIG_PASSPHRASE" in desk.out
    assert desk.pulumi[-1]["environment"]["PULUMI_CONFIG_PASSPHRASE"] == "p"


@pytest.mark.parametrize("desk", ["intel-grub-bios"], indirect=True)
def test_the_hosts_only_card_goes_to_a_vm_once_the_person_accepts_that_the_screen_is_lost(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, "103", "n")
    assert run(desk, capsys, *desk.where, *desk.key) == 1
    assert "the host's screen" in desk.out and not desk.file.exists()
    answering(monkeypatch, "103", "y", "yes")
    assert run(desk, capsys, *desk.where, *desk.key) == 0, desk.out
    card = {"match": "10de:1b80", "use": "vm", "allowConsole": True}
    assert desk.config["homelab:hosts"]["pve"]["gpus"] == {"gtx1080": card}
    # Who has accepted it once keeps it.
    before = desk.file.read_text()
    answering(monkeypatch, "y", "yes")
    assert run(desk, capsys, "pve", "--card", "gtx1080=103") == 0, desk.out
    assert desk.file.read_text() == before


def test_ctrl_c_at_a_question_leaves_everything_as_it_was(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOMELAB_PASSWORD", "PULUMI_CONFIG_PASSPHRASE"):
        monkeypatch.delenv(name)
    for number in sampling.sample(range(1, len(talk(desk)) + 1), 2, "questions"):
        answering(monkeypatch, *talk(desk), stops_at=number)
        assert run(desk, capsys, *desk.where) == 130, number
        assert "Nothing was changed." in desk.out
        assert not desk.file.exists() and not desk.keys
        assert not (desk.folder / "home/.ssh").exists()
        assert {call["arguments"][-2] for call in desk.pulumi} <= {"--verbose", "--show-name"}


def test_when_the_answers_end_the_question_is_named(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, "y")
    assert run(desk, capsys, *desk.where) == 2
    assert "in advance: --card CARD=WHO." in desk.out and not desk.file.exists()


@pytest.mark.parametrize("step", ["authorize", "make", "write_settings", "make_stack"])
def test_a_run_that_ends_at_a_step_is_completed_by_the_next(
    step: str, desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (desk.folder / "Pulumi.yaml").unlink()
    owner = {"authorize": first_contact, "make": project, "make_stack": Pulumi}.get(step, conversation)
    does = getattr(owner, step)

    def interrupted(*arguments: Any) -> None:
        does(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, step, interrupted)
    asked = [*desk.where, *desk.key, *CARD]
    assert run(desk, capsys, *asked) == 130
    monkeypatch.setattr(owner, step, does)
    assert run(desk, capsys, *asked) == 0, desk.out
    assert desk.config["homelab:vms"]["sandbox"]["gpus"] == ["rtx5090"] and (desk.folder / "Pulumi.yaml").exists()
    assert len(desk.keys) == 1


def test_a_run_that_is_killed_while_pulumi_works_is_completed_by_the_next(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    program = desk.folder / "bin" / "pulumi"
    text = program.read_text()
    kill = "arguments = sys.argv[1:]\nif arguments[1:2] == ['select']: os.kill(os.getppid(), 9); sys.exit(1)\n"
    program.write_text(text.replace("arguments = sys.argv[1:]\n", kill))
    asked = [*desk.where, *desk.key, *CARD]
    command = [sys.executable, "-m", "homelab", "init", *asked]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert killed.returncode == -9, killed
    program.write_text(text)
    assert run(desk, capsys, *asked) == 0, desk.out
    assert "encryptionsalt" in desk.file.read_text()


def test_a_host_as_installed_is_told_before_anything_is_written_that_it_has_no_headers(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(desk, capsys, *desk.where, *desk.key, "--card", "rtx5090=host", "--yes") == 2
    assert "6.17.2-1-pve: not installed, and in none of the lists" in desk.out
    assert "No-Subscription" in desk.out and not desk.file.exists()
    # At the question, right after the answer.
    answering(monkeypatch, "host", "nobody")
    assert run(desk, capsys, *desk.where, *desk.key) == 1
    assert "`pvesh set /nodes/localhost/apt/repositories --handle no-subscription`" in desk.out
    assert "    wanted: hosts.pve: headers of each installed kernel\n" in desk.out


@pytest.mark.parametrize("desk", ["mixed"], indirect=True)
def test_a_host_as_installed_gets_a_storage_for_snippets_with_a_shared_card(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*desk.where, *desk.key, "--card", "rtx3090=103,201", "--yes"]
    assert run(desk, capsys, *asked, "--dry-run") == 0, desk.out
    assert "changes /etc/pve/storage.cfg: the storage local takes snippets" in desk.out
    assert run(desk, capsys, *asked) == 0, desk.out
    (host,) = desk.config["homelab:hosts"].values()
    assert host["gpus"]["rtx3090"]["use"] == "shared" and host["nvidia"] == {"driver": "580"}
    assert [vm["gpus"] for vm in desk.config["homelab:vms"].values()] == [["rtx3090"]]
    assert [container["gpus"] for container in desk.config["homelab:containers"].values()] == [["rtx3090"]]


@pytest.mark.parametrize("desk", ["mixed"], indirect=True)
def test_a_card_that_is_given_by_an_option_takes_no_question_from_the_other(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, "201", "yes")
    assert run(desk, capsys, *desk.where, *desk.key, "--card", "rtx3090=103") == 0, desk.out
    gpus = desk.config["homelab:hosts"]["pve"]["gpus"]
    assert (gpus["rtx3090"]["use"], gpus["rtx3090-2"]["use"]) == ("vm", "lxc")
    assert "at 0000:1d:00" in desk.out and "at 0000:1e:00" in desk.out


# Scenario -> the slot that goes to a VM, what is answered (nothing: what is preselected, the one VM that could have the card), further options.
ITS_SCREEN = ["103", "y"]  # the host has no other card
SCENARIOS: dict[str, tuple[str, list[str], list[str]]] = {
    "rtx5090": ("0000:01:00", [""], []),
    "wtr-max": ("0000:01:00", [""], []),
    "intel-zfs": ("0000:01:00", [""], []),
    "two-identical": ("0000:1e:00", ["", ""], []),
    "four-functions": ("0000:01:00", [""], []),
    # Its containers are to lose the card.
    "phoenix": ("0000:02:00", ["nobody", "y"], ["--card", "rtx4090=103"]),
    "intel-grub-bios": ("0000:03:00", ITS_SCREEN, []),
    "zfs-grub-shim": ("0000:01:00", [""], []),
    "iommu-off": ("0000:03:00", ITS_SCREEN, []),
    "bound-by-hand": ("0000:01:00", [""], ["--set", "hosts.pve.takeOver=true"]),
    "half-bound": ("0000:01:00", [""], []),
    # The other one of its two identical cards goes to containers.
    "mixed": ("0000:1d:00", ["103", "201,202"], []),
    # No guest.
    "laptop-egpu": (
        "0000:04:00",
        [""],
        [
            *("--set", 'hosts.pve.gpus.rtx4060-ti={match: "10de:2803", use: vm}'),
            *("--set", "vms.dev={host: pve, vmid: 100, gpus: [rtx4060-ti], create: {scsi0: local-lvm:64}}"),
        ],
    ),
    # The host's driver has both cards.
    "recorded-node": ("0000:41:00", ["nobody", "103"], []),
}


def need_vm(desk: Desk) -> None:
    """VM 103, on a host that has no guest in its scenario."""
    if "103" not in desk.lab.run("qm list").stdout:
        desk.lab.run("qm create 103 --machine q35")


@pytest.mark.parametrize(
    ("desk", "scenario"),
    [(one, one) for one in sampling.sample(sorted(SCENARIOS), 1, "what a person answers")],
    indirect=["desk"],
)
def test_what_a_person_answers_gives_the_slot_to_the_vm(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, scenario: str
) -> None:
    """Others with another seed. What `up` makes of that: tests/lab/test_bound_hosts.py has each of these hosts."""
    slot, answers, options = SCENARIOS[scenario]
    if "103" in answers:
        need_vm(desk)
    answering(monkeypatch, *answers, "yes")
    assert run(desk, capsys, *desk.where, *desk.key, *options) == 0, desk.out
    (host,), (vm,) = desk.config["homelab:hosts"].values(), desk.config["homelab:vms"].values()
    (name,) = vm["gpus"]
    wanted = hosts.settings({name: host["gpus"][name]})
    assert gates.check(read(desk.lab.machine), wanted) == ({name: slot}, [])


@pytest.mark.parametrize(
    ("desk", "scenario"), [(one, one) for one in sampling.sample([*REFUSED], 1, "refused by init")], indirect=["desk"]
)
def test_what_would_bring_the_host_down_is_refused_and_the_host_is_as_it_was(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, scenario: str
) -> None:
    need_vm(desk)
    stock, boots = desk.lab.snapshot(), desk.lab.boots()
    answering(monkeypatch, "103", "nobody", "nobody")
    assert run(desk, capsys, *desk.where, *desk.key) == 1, desk.out
    shown = " ".join(desk.out.split())
    assert REFUSED[scenario] in shown and "No card was given to anybody" in shown
    assert (desk.lab.snapshot(), desk.lab.boots()) == (stock, boots)


def test_every_scenario_is_set_up_or_refused_by_init_at_a_terminal() -> None:
    """Here, or with the engine (tests/e2e: test_init.py, and those that begin with `by_init`); of some a sample is tried."""
    texts = [path.read_text(encoding="utf-8") for path in (PROJECT / "tests/e2e").glob("test_*.py")]
    begun = {name for text in texts for name in re.findall(r'= by_init\(\s*"([\w-]+)"', text)}
    named = {*VMS, *CONTAINERS, *SCENARIOS, *REFUSED, *begun}
    assert named == {path.stem for path in SCENARIO_FOLDER.glob("*.yaml")}
