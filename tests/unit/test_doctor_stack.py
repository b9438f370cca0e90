"""The stack's file as `homelab doctor` reads it: which host, how it is logged in to, which cards a container is to have."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncssh
import pytest
import yaml

from homelab.cli import access, command_line, log, show, stack_options
from homelab.cli.doctor import diagnose, everything, main, parser
from homelab.doctor import container
from homelab.doctor.devices import of_settings
from homelab.doctor.reading import Reading
from homelab.doctor.report import Report
from homelab.errors import HomelabError
from homelab.findings import Turn
from homelab.judged.tree import Settings, Tree, judged
from homelab.reading import diagnosis, planning
from homelab.remote import ssh
from homelab.settings import stack_file
from homelab.settings.stack_file import StackFile
from remote_scripts.notes.record import Record, State
from tests.conftest import PROJECT
from tests.unit.hosts import KEY, desktop, one_in_vm
from tests.unit.test_doctor import BARE, DEVICE_LINES, LIBRARY, inside, reading

SECURE = {"secure": "v1:abcdef:0123456789"}


def host(**ssh: Any) -> dict[str, Any]:
    return {"address": "192.168.0.202", "ssh": {"hostKey": KEY, **(ssh or {"agent": True})}, "gpus": {"big": {"match": "10de:2b85", "use": "lxc"}}}  # fmt: skip


def written(folder: Path, config: dict[str, Any]) -> StackFile:
    file = folder / "Pulumi.x.yaml"
    file.write_text(yaml.safe_dump({"config": {f"homelab:{key}": value for key, value in config.items()}}))
    return StackFile.read(file)


def judged_by(file: StackFile, seen: Reading, host: str | None = None, of_stack: str = "") -> Tree:
    """What is judged of a host by a stack's file."""
    name, its = file.host(host)
    return judged(seen.facts, Settings(name, its, *file.guests().guests_on(name), of_stack))


def test_one_of_several_is_asked_for(tmp_path: Path) -> None:
    both = written(tmp_path, {"hosts": {"a": host(), "b": host() | {"address": "10.0.0.1"}}})
    assert both.host("b")[1].address == "10.0.0.1"
    for name in (None, "c"):
        with pytest.raises(HomelabError, match="hosts there: a, b"):
            both.host(name)


@pytest.mark.parametrize("secret", ["privateKey", "password"])
def test_a_secret_that_pulumi_has_encrypted_is_sent_to_no_host_and_no_vm_and_is_said(
    tmp_path: Path, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = {"hostKey": KEY, secret: SECURE}
    vm = {"host": "pve", "vmid": 103, "gpus": ["big"], "address": "192.0.2.9", "ssh": login, "nvidia": {}}
    gpus = {"gpus": {"big": {"match": "10de:2b85"}}}
    found = written(tmp_path, {"hosts": {"pve": host(**{secret: SECURE}) | gpus}, "vms": {"sandbox": vm}})
    monkeypatch.setattr(asyncssh, "connect", lambda *_, **__: pytest.fail("it logs in"))
    guests = {"running": [103], "configs": [{"kind": "vm", "id": 103, "lines": ""}]}
    known = found.guests()
    (unread,) = planning._read_vms(known.hosts["pve"], desktop(guests=guests), known.vms, None)[2]
    assert f"vms.sandbox was not looked into (ssh.{secret} is encrypted" in unread
    with pytest.raises(HomelabError, match=f"ssh.{secret} is encrypted, and only Pulumi can read it") as raised:
        ssh.read(found.host(None)[1])
    assert "--identity" in raised.value.next and "agent" in raised.value.next
    assert SECURE["secure"] not in str(raised.value)
    monkeypatch.setattr(stack_options, "read", lambda _: found)

    def planned(wanted: Settings, *_: Any) -> Tree:
        return replace(judged(desktop(guests=guests), wanted), unread=[unread])

    monkeypatch.setattr(planning, "planned", planned)
    monkeypatch.setattr(diagnosis, "read", lambda *_: reading(facts=desktop(guests=guests)))
    monkeypatch.setattr(ssh, "read", lambda *_, **__: desktop(guests=guests))
    for kind, told in (["stack"], everything), (["host"], diagnose), (["vm", "103"], diagnose):
        asked = parser().parse_args(kind)
        assert "vms.sandbox was not looked into" in told(asked).text()
    assert any(unread in node.text for root in show.trees(asked) for node in root.walk())

    key = tmp_path / "key"
    key.write_text("-")
    assert found.host(None, str(key))[1].ssh.key == log.of_guest(found, "vms.sandbox", str(key))[0].ssh.key == "-"


def test_other_secrets_are_not_asked_for(tmp_path: Path) -> None:
    nvidia = {"driver": "580", "proxy": SECURE}
    name, only = written(tmp_path, {"hosts": {"pve": host() | {"nvidia": nvidia}}}).host(None)
    assert name == "pve" and only.nvidia is not None and only.nvidia.driver == "580"
    assert SECURE["secure"] not in only.nvidia.proxy_address


@pytest.mark.parametrize("config", [{}, {"hosts": {}}, {"hosts": SECURE}, {"hosts": [1]}])
def test_a_file_without_hosts(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(HomelabError, match=r"hosts under homelab:hosts[^§]*--config-file"):
        written(tmp_path, config).host(None)


def test_a_file_that_is_not_there_or_not_yaml(tmp_path: Path) -> None:
    with pytest.raises(HomelabError, match="Pulumi.homelab.yaml"):
        StackFile.read(tmp_path / "Pulumi.none.yaml")
    broken = tmp_path / "Pulumi.broken.yaml"
    for text, line in ("config: {password: hunter2", 1), ("config:\n\tpassword: hunter2\n", 2):
        broken.write_text(text)
        with pytest.raises(HomelabError, match=f"line {line} isn't YAML in UTF-8: often a tab, or a quote") as raised:
            StackFile.read(broken)
        assert "hunter2" not in str(raised.value)


def test_what_is_no_text_and_no_list_is_a_mistake_in_words(tmp_path: Path) -> None:
    file = tmp_path / "Pulumi.x.yaml"
    file.write_text(yaml.safe_dump({"config": {7: "x", "homelab:hosts": {"pve": host(), None: host()}}}))
    with pytest.raises(HomelabError, match="hosts there: pve, None"):
        StackFile.read(file).host(None)
    ai = {"host": "pve", "ctid": 901, "gpus": "big"}
    mistaken = written(tmp_path, {"hosts": {"pve": host()}, "containers": {"ai": ai}})
    with pytest.raises(HomelabError, match=r"x\.yaml:\d+: homelab:containers\.ai\.gpus: what .* isn't a list"):
        mistaken.guests()


def test_a_mistake_in_the_settings_is_named(tmp_path: Path) -> None:
    with pytest.raises(HomelabError, match="homelab:hosts.pve.adress"):
        written(tmp_path, {"hosts": {"pve": host() | {"adress": "x"}}}).host(None)


def test_the_settings_say_which_cards_a_container_is_to_have(tmp_path: Path) -> None:
    containers = {
        "ai": {"host": "pve", "ctid": 901, "gpus": ["big"]},
        "old": {"host": "pve", "ctid": 950, "gpuAssignment": "0"},
        "far": {"host": "other", "ctid": 300, "gpuAssignment": "5"},
    }
    hosts = {"pve": host() | {"cluster": "home"}, "other": host() | {"address": "10.0.0.1"}}
    found = written(tmp_path, {"hosts": hosts, "containers": containers})
    tree = judged_by(found, reading(), "pve")
    for ctid, by in ((901, "ai.gpus"), (950, "old.gpuAssignment")):
        cards = of_settings(tree, ctid)
        assert cards is not None
        assert (cards.numbers, cards.by) == ([0], f"homelab:containers.{by}")
    assert of_settings(tree, 300) is None


def test_a_card_of_the_settings_without_nvidias_driver_is_named(tmp_path: Path) -> None:
    containers = {"ai": {"host": "pve", "ctid": 901, "gpus": ["big"]}}
    found = written(tmp_path, {"hosts": {"pve": host()}, "containers": containers})
    seen = reading(facts=desktop())
    refused, differs = container.diagnose(seen, 901, tree=judged_by(found, seen)).findings
    says = "gpus.big (RTX 5090 [10de:2b85] at 0000:01:00) isn't one of NVIDIA's, or its driver hasn't taken"
    assert refused.turn is Turn.REFUSED and says in refused.found and differs.next == refused.next


def of_shared_card(folder: Path, state: State, cards: dict[str, Any]) -> Report:
    """On a container whose card is shared and not with the driver."""
    shared = host() | {"gpus": {"big": {"match": "10de:2b85", "use": "shared"}}, "nvidia": {"driver": "580"}}
    found = written(folder, {"hosts": {"pve": shared}, "containers": {"ai": {"host": "pve", "ctid": 901, **cards}}})
    seen = reading("").facts
    noted = Record(state=state, vm="103", boot=seen.boot_id.strip(), since=1700000000, why="it hangs")
    handover = dataclasses.replace(seen.handover, away=f"gpus.big is {state}", cards={"big": noted})
    away = reading("", facts=replace(seen, nvidia_minors={}, handover=handover))
    return container.diagnose(away, 901, tree=judged_by(found, away))


@pytest.mark.parametrize("cards", [{"gpus": ["big"]}, {"gpuAssignment": "0"}], ids=["named", "numbered"])
def test_a_shared_card_that_a_vm_has_for_now_is_nothing_wrong(tmp_path: Path, cards: dict[str, Any]) -> None:
    report = of_shared_card(tmp_path, "VM", cards)
    assert report.well and any(re.match("gpus.big .*VM 103", note) for note in report.notes), report.text()


@pytest.mark.parametrize("state", ["HELD", "STUCK", "DEAD"])
@pytest.mark.parametrize("cards", [{"gpus": ["big"]}, {"gpuAssignment": "0"}], ids=["named", "numbered"])
def test_a_shared_card_that_no_vm_gives_back_is_a_finding(tmp_path: Path, cards: dict[str, Any], state: State) -> None:
    report = of_shared_card(tmp_path, state, cards)
    (one,) = report.findings
    assert f"gpus.big is {state} since" in one.found and "it hangs" in one.found and "doctor host" in one.next
    assert not any("when that VM is shut down" in note for note in report.notes)


def test_libraries_that_the_settings_install_come_by_up(tmp_path: Path) -> None:
    containers = {"ai": {"host": "pve", "ctid": 901, "gpus": ["big"], "nvidia": {}}}
    found = written(tmp_path, {"hosts": {"pve": host()}, "containers": containers})
    seen = reading(DEVICE_LINES, inside({}).replace(LIBRARY, ""), installed=BARE)
    report = container.diagnose(seen, 901, tree=judged_by(found, seen))
    (one,) = [one for one in report.findings if "what is installed in container 901" in one.wanted]
    assert one.found.endswith("packages: there is no record of it") and one.next.startswith("`pulumi up --refresh`")


@pytest.mark.parametrize(
    ("variable", "selected", "chosen"),
    [("me/homelab/prod", "exit 1", "prod"), ("", "echo office", "office"), ("", "exit 1", "homelab")],
)
def test_the_stack_is_the_one_that_pulumi_has_selected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, selected: str, chosen: str
) -> None:
    program = tmp_path / "pulumi"
    program.write_text(f'#!/bin/sh\n[ "$*" = "stack --show-name --non-interactive" ] || exit 1\n{selected}\n')
    program.chmod(0o755)
    (tmp_path / "Pulumi.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("PULUMI_STACK", variable)
    with pytest.raises(HomelabError, match=rf"configuration in {tmp_path}/Pulumi\.{chosen}\.yaml"):
        stack_options.read(argparse.Namespace(stack=None, config_file=None))


@pytest.mark.parametrize(
    ("file", "chosen", "noted"),
    [
        ("Pulumi.lab.yaml", None, "mine/lab"),
        ("other.yaml", None, ""),  # `--config-file`: it may be any stack's
        ("other.yaml", "me/mine/prod", "mine/prod"),
    ],
)
def test_whose_guests_a_files_are_is_known_by_its_name_or_by_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, chosen: str | None, noted: str
) -> None:
    (tmp_path / "Pulumi.yaml").write_text("name: mine\n")
    monkeypatch.chdir(tmp_path)
    found = StackFile(tmp_path / file, {})
    assert stack_options.noted(argparse.Namespace(stack=chosen), found) == noted


def test_a_stack_is_named_as_pulumi_names_it() -> None:
    assert stack_file.path_of("organization/homelab/lab") == PROJECT / "Pulumi.lab.yaml"


def test_what_can_not_be_read_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["doctor", "host", "--config-file", str(tmp_path / "x.yaml")]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("wanted: a stack's configuration in ")


def test_a_program_gets_the_reason_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["host", "--json", "--config-file", str(tmp_path / "x.yaml")]) == 2
    value = json.loads(capsys.readouterr().out)
    assert (value["version"], value["kind"]) == (1, "host")
    assert value["errors"][0]["found"] == "No such file or directory"


@pytest.mark.parametrize(
    "words",
    [[], ["container"], ["container", "1", "--gpus", "0,x"], ["host", "1"], ["vm", "1", "--like", "2"]],
)
def test_wrong_words_end_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        parser().parse_args(words)
    assert raised.value.code == 2 and "usage: homelab doctor" in capsys.readouterr().err


def test_without_settings_nothing_is_said_to_leave_a_vm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that is named by its address: the settings may be elsewhere, and have the card."""
    login: dict[str, Any] = {"address": "192.0.2.1", "ssh": {"hostKey": KEY, "agent": True}}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        access, "of_address", lambda *_: access.Access(access.host_at("192.0.2.1", login["ssh"]), login)
    )
    for facts, found in ((one_in_vm(), []), (one_in_vm(pve="7.4"), ["Proxmox VE 7.4"])):
        monkeypatch.setattr(diagnosis, "read", lambda *_, facts=facts: reading(facts=facts))
        report = diagnose(parser().parse_args(["host", "--host", "192.0.2.1"]))
        assert [one.found for one in report.findings] == found, report.text()
        assert "--delete hostpci" not in report.text()
        assert [
            one.found for one in everything(parser().parse_args(["stack", "--host", "192.0.2.1"])).findings
        ] == found
