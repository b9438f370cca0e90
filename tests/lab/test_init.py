"""`homelab init` on a lab's host, over SSH: from an address and a password to settings, and again.

Pulumi is a stand-in here, which notes how it is called; tests/e2e/test_init.py has the real one.
"""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh
import pytest
import yaml

from homelab.cli import init
from homelab.cli.command_line import main
from homelab.cli.output import Output
from homelab.cli.questions import Lines
from homelab.remote import first_contact
from homelab.settings.secrets import is_encrypted
from lab import Lab
from tests import agent_kit, sampling
from tests.conftest import PROJECT
from tests.unit import hosts

# What `init` calls of Pulumi, as it answers: a stack's file gets its salt, a secret gets encrypted there.
PULUMI = """#!{python}
import json, os, sys
arguments, given = sys.argv[1:], sys.stdin.read()
with open(os.environ["FAKE_PULUMI_LOG"], "a") as log:
    log.write(json.dumps({{"arguments": arguments, "stdin": given, "passphrase": os.environ.get("PULUMI_CONFIG_PASSPHRASE")}}) + "\\n")
if arguments[:1] == ["whoami"]:
    if "FAKE_LOGGED_OUT" in os.environ: sys.exit(3)
    print(json.dumps({{"user": "me", "url": "file://~"}}))
if arguments[:2] == ["stack", "ls"]: print(json.dumps([{{"name": name}} for name in os.environ.get("FAKE_STACKS", "").split()]))
if arguments[:2] == ["stack", "init"]:
    with open("Pulumi.homelab.yaml") as file: text = file.read()
    if "encryptionsalt" in text: sys.exit("error: stack 'homelab' already exists")
    with open("Pulumi.homelab.yaml", "a") as file: file.write("encryptionsalt: v1:salt\\n")
if arguments[:2] == ["config", "set"]:
    import yaml  # slow to load
    path = arguments[-2] if arguments[-1] == "--non-interactive" else arguments[-1]
    whole = yaml.safe_load(open("Pulumi.homelab.yaml"))
    space, _, rest = path.partition(":")
    *outer, last = rest.split(".")
    inner = whole["config"]["homelab:" + outer[0]]
    for part in outer[1:]: inner = inner[part]
    inner[last] = {{"secure": "v1:" + str(len(given))}}
    yaml.safe_dump(whole, open("Pulumi.homelab.yaml", "w"), sort_keys=False)
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
        return [self.lab.connection["host"], "--port", str(self.lab.connection["port"])]

    @property
    def key(self) -> list[str]:
        return ["--host-key", self.lab.connection["hostKey"]]

    @property
    def authorized(self) -> Path:
        """The host's file with the keys that log in."""
        return self.lab.root / "root/.ssh/authorized_keys"


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
    yield (desk := Desk(tmp_path, lab))
    desk.authorized.unlink(missing_ok=True)


def run(desk: Desk, capsys: pytest.CaptureFixture[str], *arguments: str) -> int:
    status = main(["init", *arguments])
    desk.out, desk.err = capsys.readouterr()
    return status


CARD = ("--card", "rtx5090=vm:103", "--yes")


def test_from_an_address_and_a_password_to_settings(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = desk.lab.snapshot()
    assert run(desk, capsys, *desk.where, *desk.key, *CARD) == 0, desk.err
    assert desk.config["homelab:hosts"]["pve"].keys() == {"address", "ssh", "gpus"}
    assert desk.config["homelab:vms"] == {"sandbox": {"host": "pve", "vmid": 103, "gpus": ["rtx5090"]}}
    # The key that was made lets the next run in, and no password is in the settings.
    assert desk.config["homelab:hosts"]["pve"]["ssh"]["privateKeyFile"] == "~/.ssh/homelab_ed25519"
    made = desk.folder / "home/.ssh/homelab_ed25519"
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert desk.authorized.read_text().count(first_contact.public_half(made)) == 1
    assert desk.lab.snapshot() == stock and desk.lab.connection["password"] not in desk.out + desk.err
    done = [call["arguments"][0] for call in desk.pulumi]
    assert done == ["whoami", "stack", "stack", "stack", "preview"]

    # A second run finds everything, and a card goes on as it is.
    monkeypatch.setenv("FAKE_STACKS", "homelab")
    keys, text = desk.authorized.read_text(), desk.file.read_text()
    assert run(desk, capsys, "--yes") == 0, desk.err
    assert desk.authorized.read_text() == keys and desk.file.read_text() == text
    assert "Pulumi.homelab.yaml stays as it is." in desk.out


def test_what_is_shown_is_what_is_done(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(desk, capsys, *desk.where, *desk.key, "--card", "rtx5090=vm:103", "--json", "--dry-run") == 0, desk.err
    planned = json.loads(desk.out)
    assert planned["done"] == [] and planned["refused"] == [] and not desk.file.exists()
    assert planned["host"]["version"].startswith("9.") and planned["cards"][0]["is"].startswith("RTX 5090")
    assert not desk.authorized.exists()
    assert run(desk, capsys, *desk.where, *desk.key, *CARD, "--json") == 0, desk.err
    assert (
        json.loads(desk.out)["settings"] == planned["settings"] == desk.file.read_text().partition("encryptionsalt")[0]
    )


@pytest.mark.parametrize("desk", ["containers-pve8"], indirect=True)
def test_a_card_for_a_container_and_later_another_one(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--card", "rtx4060=lxc:210", "--cuda", "none", "--yes", "--no-preview"]
    assert run(desk, capsys, *desk.where, *desk.key, *asked) == 0, desk.err
    assert desk.config["homelab:containers"]["jellyfin"] == {
        "host": "pve", "ctid": 210, "gpus": ["rtx4060"], "nvidia": {}
    }  # fmt: skip
    # The other card, later: the first one's settings stay.
    before = desk.file.read_text()
    assert run(desk, capsys, "--card", "04:00=lxc:211", "--yes", "--no-preview") == 0, desk.err
    assert [line for line in before.splitlines() if line not in desk.file.read_text().splitlines()] == []
    assert desk.config["homelab:containers"]["ai-lab"]["nvidia"] == {}


@pytest.mark.parametrize("desk", ["tesla-p4"], indirect=True)
def test_what_is_proposed_for_old_cards_in_new_containers_works(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    cards = [f"{place}=lxc:{ids}" for place, ids in (("01:00", "301"), ("02:00", "302"), ("41:00", "303,304,305,306"))]
    asked = [*desk.where, *desk.key, *(word for card in cards for word in ("--card", card)), "--no-preview"]
    assert run(desk, capsys, *asked, "--yes") == 0, desk.err
    # CUDA 13 no longer builds for Pascal, and NVIDIA's repository for Debian 13 has no other: the driver alone.
    assert "No release of CUDA in the containers" in desk.out
    assert desk.config["homelab:hosts"]["pve"]["nvidia"] == {"driver": "580"}
    assert [one["nvidia"] for one in desk.config["homelab:containers"].values()] == [{}] * 6

    # What a person names nevertheless is refused for each container, with what is to be had.
    for cuda, found in (("13.1", "CUDA 13 no longer builds for Pascal"), ("12.9", "begins with CUDA 13.1")):
        assert run(desk, capsys, *asked, "--cuda", cuda, "--yes") == 1
        assert desk.out.count(found) == 6 and "Nothing was done" in desk.out
        assert "leave nvidia.cuda out: no release" in desk.out and "set nvidia.cuda" not in desk.out


@pytest.mark.parametrize("desk", ["tesla-p4"], indirect=True)
def test_of_the_cudas_that_card_and_distribution_have_the_newest_comes_first_and_none_is_preselected(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    person = answering(monkeypatch, "", "2", "yes")
    asked = ["--card", "42:00=lxc:307", "--no-preview"]
    assert run(desk, capsys, *desk.where, *desk.key, *asked) == 0, desk.err
    assert desk.config["homelab:containers"]["training"]["nvidia"] == {"cuda": "12.9"}
    assert "some 8 GB" in person.asked[1] and "1* none: programs bring their own CUDA" in desk.out


@pytest.mark.parametrize("desk", ["tesla-p4"], indirect=True)
def test_without_a_driver_nothing_is_proposed_that_brings_one(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [*desk.where, *desk.key, "--card", "42:00=host", "--driver", "none", "--yes", "--no-preview"]
    assert run(desk, capsys, *asked, "--cuda", "12.9") == 2
    assert "--driver none" in desk.err and not desk.file.exists()
    assert run(desk, capsys, *asked) == 0, desk.err
    assert "nvidia" not in desk.config["homelab:hosts"]["pve"]


@pytest.mark.parametrize("desk", ["bound-by-hand"], indirect=True)
def test_nvidias_software_inside_a_vm(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    guest = desk.lab.guest(103)
    (desk.folder / "home/.ssh").mkdir()
    (desk.folder / "home/.ssh/id_ed25519").write_bytes(Path(guest["privateKeyFile"]).read_bytes())
    inside = ["--guest-address", guest["host"], "--guest-port", str(guest["port"]), "--guest-user", "root"]
    asked = [*desk.where, *desk.key, *CARD, *inside, "--cuda", "12.8", "--container-toolkit", "docker", "--no-preview"]
    assert run(desk, capsys, *asked) == 1
    assert "--guest-host-key" in desk.out and not desk.file.exists()
    # It has no Docker, which is seen before the host is rebooted for its card.
    assert run(desk, capsys, *asked, "--guest-host-key", guest["hostKey"]) == 1
    assert "installed: no container runtime" in desk.out and not desk.file.exists()
    asked += ["--guest-host-key", guest["hostKey"], "--set", "vms.sandbox.nvidia.docker=install"]
    assert run(desk, capsys, *asked) == 0, desk.err
    vm = desk.config["homelab:vms"]["sandbox"]
    assert vm["address"] == guest["host"] and vm["ssh"]["hostKey"] == guest["hostKey"]
    assert vm["ssh"]["privateKeyFile"] == "~/.ssh/id_ed25519"
    assert vm["nvidia"] == {"driver": "580", "cuda": "12.8", "containerToolkit": "docker", "docker": "install"}
    assert "nvidia" not in desk.config["homelab:hosts"]["pve"]


def test_a_second_host_of_the_same_name_gets_one_of_its_own(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    other = {"address": "192.0.2.7", "ssh": {"hostKey": hosts.KEY, "agent": True}}
    desk.file.write_text("# mine\n" + yaml.safe_dump({"config": {"homelab:hosts": {"pve": other}}}))
    assert run(desk, capsys, *desk.where, *desk.key, *CARD, "--no-preview") == 0, desk.err
    found = desk.config["homelab:hosts"]
    assert found["pve"] == other
    assert (found["pve-2"]["node"], found["pve-2"]["address"]) == ("pve", desk.where[0])
    assert desk.config["homelab:vms"]["sandbox"]["host"] == "pve-2"


def test_a_command_that_the_host_refuses_is_named(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.authorized.mkdir(parents=True)
    assert run(desk, capsys, *desk.where, *desk.key, *CARD, "--no-preview") == 2
    assert "mkdir -p ~/.ssh && touch ~/.ssh/authorized_keys" in desk.err and "Is a directory" in desk.err
    assert f"Not done:\n  {desk.file.name} written" in desk.out and not desk.file.exists()
    desk.authorized.rmdir()
    assert run(desk, capsys, *desk.where, *desk.key, *CARD, "--no-preview") == 0, desk.err


# -- refused, declined, interrupted ---------------------------------------------------------------------------------------
def test_another_host_key_than_the_one_that_was_given_is_refused(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(desk, capsys, *desk.where, "--host-key", "SHA256:" + "A" * 43, *CARD) == 2
    assert "one in between" in desk.err and "Nothing was changed." in desk.out
    # Without one, nobody has confirmed it.
    assert run(desk, capsys, *desk.where, *CARD) == 1
    assert "--host-key" in desk.out and not desk.file.exists() and desk.lab.connections()[-1]["accepted"] is False


def test_a_key_that_known_hosts_has_is_confirmed(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    connection = desk.lab.connection
    (desk.folder / "home/.ssh").mkdir()
    line = f"[{connection['host']}]:{connection['port']} {connection['hostKey']}\n"
    (desk.folder / "home/.ssh/known_hosts").write_text(line)
    assert run(desk, capsys, *desk.where, *CARD, "--dry-run") == 0, desk.err
    assert "the key that your known_hosts has" in desk.out


def test_a_key_of_ones_own_needs_no_password(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOMELAB_PASSWORD")
    key = desk.lab.connection["privateKeyFile"]
    assert run(desk, capsys, *desk.where, *desk.key, *CARD, "--identity", key, "--dry-run") == 0, desk.err
    assert f"privateKeyFile: {key}" in desk.out
    assert run(desk, capsys, *desk.where, *desk.key, *CARD) == 2
    assert "an answer to: root's password" in desk.err


def test_the_agent_logs_in_and_the_settings_say_so(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOMELAB_PASSWORD")
    monkeypatch.setenv("SSH_AUTH_SOCK", str(desk.folder / "agent"))
    key = asyncssh.read_private_key(desk.lab.connection["privateKeyFile"])
    with agent_kit.agent(desk.folder / "agent", key):
        assert run(desk, capsys, *desk.where, *desk.key, *CARD, "--no-preview") == 0, desk.err
        assert "Logged in as root with the SSH agent." in desk.out
        assert desk.config["homelab:hosts"]["pve"]["ssh"]["agent"] is True


@pytest.mark.parametrize(
    ("fault", "found"),
    [("none", "no agent that answers"), ("empty", "an agent without a key"), ("refuses", "signs with none"), ("gone", "signs with none")],
)  # fmt: skip
def test_an_agent_that_is_asked_for_and_does_not_help_is_named(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fault: str, found: str
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", str(desk.folder / ("agent" if fault != "none" else "nothing")))
    key = asyncssh.read_private_key(desk.lab.connection["privateKeyFile"])
    with agent_kit.agent(desk.folder / "agent", None if fault == "empty" else key, fault):
        assert run(desk, capsys, *desk.where, *desk.key, *CARD, "--agent") == 2
    assert found in desk.err and "ssh-add" in desk.err and not desk.file.exists()


def test_a_wrong_password_is_refused(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOMELAB_PASSWORD", "wrong")
    assert run(desk, capsys, *desk.where, *desk.key, *CARD) == 2
    assert "with a password" in desk.err and "PermitRootLogin" in desk.err


def test_what_up_would_refuse_is_said_and_nothing_is_done(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(desk, capsys, *desk.where, *desk.key, "--card", "09:00=vm:103", "--yes") == 1
    assert "boot_vga" in desk.out and "Nothing was done" in desk.out
    assert not desk.file.exists()


def test_a_password_can_stay_in_the_settings_encrypted(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(desk, capsys, *desk.where, *desk.key, *CARD, "--no-install-key", "--no-preview") == 0, desk.err
    assert is_encrypted(desk.config["homelab:hosts"]["pve"]["ssh"]["password"])
    given = [call["stdin"] for call in desk.pulumi if call["arguments"][:2] == ["config", "set"]]
    assert given == [desk.lab.connection["password"]]
    assert not any(given[0] in " ".join(call["arguments"]) for call in desk.pulumi)


@dataclass
class Person(Lines):
    """Answers one question after the other, as lines; and stops at one of them."""

    answers: Sequence[str] = ()
    stops_at: int | None = None
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(io.StringIO("".join(f"{one}\n" for one in self.answers)))

    def _ask(self, question: str, hint: str) -> str:
        self.asked.append(question)
        if self.stops_at == len(self.asked):
            raise KeyboardInterrupt
        return super()._ask(question, hint)

    def secret(self, question: str) -> str:
        return self._ask(question, "")


def answering(monkeypatch: pytest.MonkeyPatch, *answers: str, stops_at: int | None = None) -> Person:
    person = Person(answers=answers, stops_at=stops_at)
    monkeypatch.setattr(init, "questions", lambda: person)
    return person


def talk(desk: Desk) -> list[str]:
    """A whole conversation: the key is right, the password, the card for VM 103, state and passphrase, details, yes."""
    return ["y", desk.lab.connection["password"], "vm:103", "", "p", "q", "p", "p", "?", "yes"]


def test_every_question_is_answered_by_a_line(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOMELAB_PASSWORD", "PULUMI_CONFIG_PASSPHRASE"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("FAKE_LOGGED_OUT", "1")
    person = answering(monkeypatch, *talk(desk))
    assert run(desk, capsys, *desk.where, "--no-preview") == 0, desk.err
    assert "They differ." in desk.out
    assert [question.split(" (")[0] for question in person.asked] == [
        "Is it the same?", f"root's password on {desk.where[0]}", "Who should get rtx5090",
        "Where should Pulumi keep the stack's state?", *["Passphrase for the stack's secrets", "The same passphrase again"] * 2,
        *["Do all of this?"] * 2,
    ]  # fmt: skip
    assert "rtx5090: preselected for VM 103 (Sandbox), running, since no other guest fits." in desk.out
    assert "radeon-graphics" in desk.out and "stays with the host, which shows its screen on it" in desk.out
    before, first, second = desk.out.partition("done: ")[0].split("In short:")
    for in_short in (first, second):
        assert "rtx5090 → VM 103 (Sandbox), running" in in_short
        assert f"created on {desk.where[0]}: your public key\n" in in_short
    details = ("homelab:hosts:", "hostpci0: mapping=rtx5090,pcie=1")
    assert [detail for detail in details if detail in before + second] == [], "only who asks for it gets all of it"
    assert [detail for detail in details if detail not in first] == []
    login = next(call for call in desk.pulumi if call["arguments"][0] == "login")
    assert login["arguments"][1] == "file://~"
    assert desk.pulumi[-1]["passphrase"] == "p"


@pytest.mark.parametrize("desk", ["intel-grub-bios"], indirect=True)
def test_the_hosts_only_card_goes_to_a_vm_once_the_person_accepts_that_the_screen_is_lost(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, "vm:103", "n")
    assert run(desk, capsys, *desk.where, *desk.key) == 1
    assert "the host shows nothing on its screen after the boot menu" in desk.out and not desk.file.exists()
    answering(monkeypatch, "vm:103", "y", "yes")
    assert run(desk, capsys, *desk.where, *desk.key, "--no-preview") == 0, desk.err
    card = {"match": "10de:1b80", "use": "vm", "allowConsole": True}
    assert desk.config["homelab:hosts"]["pve"]["gpus"] == {"gtx1080": card}
    # Who has accepted it once keeps it.
    before = desk.file.read_text()
    answering(monkeypatch, "", "", "yes")
    assert run(desk, capsys, "--no-preview") == 0, desk.err
    assert desk.file.read_text() == before


def test_ctrl_c_at_a_question_leaves_everything_as_it_was(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOMELAB_PASSWORD", "PULUMI_CONFIG_PASSPHRASE"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("FAKE_LOGGED_OUT", "1")
    for number in sampling.sample(range(1, len(talk(desk)) + 1), 4, "questions"):
        answering(monkeypatch, *talk(desk), stops_at=number)
        assert run(desk, capsys, *desk.where) == 130, number
        assert "Nothing was changed." in desk.out
        assert not desk.file.exists() and not desk.authorized.exists()
        assert not (desk.folder / "home/.ssh").exists()
        assert {call["arguments"][0] for call in desk.pulumi} <= {"whoami"}


def test_when_the_answers_end_the_question_is_named(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, "y")
    assert run(desk, capsys, *desk.where) == 2
    assert "--help lists both" in desk.err and not desk.file.exists()


@pytest.mark.parametrize("option", ["--install-key", "--no-install-key"])
def test_ctrl_c_after_a_step_says_what_is_there_and_the_next_run_completes_it(
    option: str, desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    did = Output.did
    asked = [*desk.where, *desk.key, *CARD, option, "--no-preview"]
    assert run(desk, capsys, *asked) == 0, desk.err
    whole, steps = desk.config, desk.out.count("  done: ")
    assert steps == 3
    for number in range(1, steps):
        desk.authorized.unlink(missing_ok=True)
        desk.file.unlink()

        def interrupted(output: Output, step: str, number: int = number) -> None:
            did(output, step)
            if len(output.done) == number:
                raise KeyboardInterrupt

        monkeypatch.setattr(Output, "did", interrupted)
        assert run(desk, capsys, *asked) == 130
        monkeypatch.setattr(Output, "did", did)
        assert "Perhaps done" in desk.out and "run it again" in desk.out
        assert run(desk, capsys, *asked) == 0, desk.err
        assert desk.config == whole and desk.authorized.exists() is (option == "--install-key"), number


def test_a_host_as_installed_is_told_before_anything_is_written_that_it_has_no_headers(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*desk.where, *desk.key, "--card", "rtx5090=host", "--driver", "580", "--yes"]
    assert run(desk, capsys, *asked) != 0
    said = desk.out + desk.err
    assert "proxmox-headers-6.17.2-1-pve: not installed, and in none of the lists" in said and "No-Subscription" in said
    assert not desk.file.exists()


@pytest.mark.parametrize("options", [(), ("--backend", "file://~")])
def test_a_stack_of_another_folder_that_keeps_its_state_in_the_same_place_is_not_taken(
    options: tuple[str, ...], desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_STACKS", "other homelab")
    assert run(desk, capsys, *desk.where, *desk.key, *CARD, *options) == 2
    assert "wanted: a new stack homelab" in desk.err and "homelab init --stack NAME" in desk.err
    assert not desk.file.exists()


@pytest.mark.parametrize("step", ["stack init", "config set"])
def test_a_run_that_is_killed_while_pulumi_works_is_completed_by_the_next(
    step: str, desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    program = desk.folder / "bin" / "pulumi"
    text = program.read_text()
    word, more = step.split()
    program.write_text(
        text.replace(
            "arguments, given = sys.argv[1:], sys.stdin.read()\n",
            "arguments, given = sys.argv[1:], sys.stdin.read()\n"
            f"if arguments[:2] == [{word!r}, {more!r}]: os.kill(os.getppid(), 9); sys.exit(1)\n",
        )
    )
    asked = [*desk.where, *desk.key, *CARD, "--no-install-key", "--no-preview"]
    command = [sys.executable, "-m", "homelab", "init", *asked]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert killed.returncode == -9, killed
    program.write_text(text)
    assert run(desk, capsys, *asked) == 0, desk.err
    assert is_encrypted(desk.config["homelab:hosts"]["pve"]["ssh"]["password"])


# -- what a new VM is made of ------------------------------------------------------------------------------------------------
@pytest.fixture
def images(desk: Desk) -> Iterator[None]:
    """The host's storage has a cloud image and a CD."""
    storages, before = desk.lab.root / "etc/pve/storage.cfg", (desk.lab.root / "etc/pve/storage.cfg").read_text()
    storages.write_text(before.replace("content iso,vztmpl,backup", "content iso,vztmpl,backup,import"))
    files = [
        desk.lab.root / "var/lib/vz" / name
        for name in ("import/noble-server-cloudimg-amd64.qcow2", "template/iso/debian-13.iso")
    ]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    yield
    storages.write_text(before)
    for file in files:
        file.unlink()


NEW = ("--card", "rtx5090=new-vm:110", "--yes", "--no-preview")


@pytest.mark.usefixtures("images")
def test_a_new_vm_starts_from_the_hosts_cloud_image_and_lets_ones_own_key_in(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    (desk.folder / "home/.ssh").mkdir()
    first_contact.make_key(desk.folder / "home/.ssh/id_ed25519")
    assert run(desk, capsys, *desk.where, *desk.key, *NEW) == 0, desk.err
    created = desk.config["homelab:vms"]["gpu"]["create"]
    assert created["image"] == "local:import/noble-server-cloudimg-amd64.qcow2"
    key = first_contact.public_half(desk.folder / "home/.ssh/id_ed25519")
    assert created["cloudInit"] == {"user": "ubuntu", "sshKeys": [key], "ip": "dhcp"}


@pytest.mark.usefixtures("images")
def test_a_new_vms_options_count_and_none_is_an_empty_disk(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    image = ["--image", "local:import/noble-server-cloudimg-amd64.qcow2"]
    cloud = ["--cloud-user", "me", "--cloud-ip", "192.0.2.7/24", "--cloud-gateway", "192.0.2.1", "--dry-run", "--json"]
    assert run(desk, capsys, *desk.where, *desk.key, *NEW, *image, *cloud) == 0, desk.err
    vm = yaml.safe_load(json.loads(desk.out)["settings"])["config"]["homelab:vms"]["gpu"]
    assert vm["create"]["cloudInit"] == {"user": "me", "ip": "192.0.2.7/24", "gateway": "192.0.2.1"}
    assert "create.cloudInit.sshKeys" in desk.err  # nobody's key is here yet
    for source, made in (("--image=none", None), ("--iso=local:iso/debian-13.iso", ["local:iso/debian-13.iso"])):
        assert run(desk, capsys, *desk.where, *desk.key, *NEW, source, "--dry-run", "--json") == 0, desk.err
        created = yaml.safe_load(json.loads(desk.out)["settings"])["config"]["homelab:vms"]["gpu"]["create"]
        assert "image" not in created and "cloudInit" not in created and created.get("isos") == made


@pytest.mark.usefixtures("images")
def test_a_new_vm_starts_from_a_known_image_that_the_host_downloads(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--image", "debian-13", "--cloud-ip", "dhcp"]
    assert run(desk, capsys, *desk.where, *desk.key, *NEW, *asked) == 0, desk.err
    create = desk.config["homelab:vms"]["gpu"]["create"]
    assert create["image"] == "debian-13" and create["cloudInit"]["user"] == "debian"
    assert desk.config["homelab:hosts"]["pve"]["downloads"] == {"debian-13": {"image": "debian-13"}}


@pytest.mark.usefixtures("images")
def test_what_a_new_vm_is_made_of_is_asked_for(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The name, storage, source, disk, user, address, gateway, do it.
    person = answering(monkeypatch, "box", "", "1", "32", "", "192.0.2.7/24", "192.0.2.1", "y")
    asked = ["--card", "rtx5090=new-vm:110", "--no-preview"]
    assert run(desk, capsys, *desk.where, *desk.key, *asked) == 0, desk.err
    created = desk.config["homelab:vms"]["box"]["create"]
    assert created["disk"] == {"storage": "local-lvm", "size": 32}
    assert created["cloudInit"] == {"user": "ubuntu", "ip": "192.0.2.7/24", "gateway": "192.0.2.1"}
    assert "What does it start from?" in person.asked


@pytest.mark.parametrize("desk", ["mixed"], indirect=True)
def test_a_card_that_containers_and_a_vm_have_in_turn_takes_a_driver_of_this_programs(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, "shared", "201,202", "103", "none", "", "yes")
    more = ["--cuda", "none", "--container-toolkit", "none", "--no-preview"]
    assert run(desk, capsys, *desk.where, *desk.key, *more) == 0, desk.out + desk.err
    config = yaml.safe_load(desk.file.read_text())["config"]
    (host,) = config["homelab:hosts"].values()
    assert host["gpus"]["rtx3090"]["use"] == "shared" and host["nvidia"] == {"driver": "580"}
    assert [vm["gpus"] for vm in config["homelab:vms"].values()] == [["rtx3090"]]
    assert [container["gpus"] for container in config["homelab:containers"].values()] == [["rtx3090"]] * 2
