"""Keys of a stack's file that nobody reads: each is named, with what was probably meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pulumi
import pytest
import yaml

from homelab import stack
from homelab.errors import HomelabError
from homelab.settings import stack_file
from tests.rows import rows

HOSTS = {"pve": {"address": "pve.lan", "ssh": {"hostKeyFile": "key.pub", "agent": True}}}


@rows(
    ("whole", "said"),
    [
        ({"homelab:containers": {}}, "homelab:containers: it is beside `config:`, where Pulumi reads config, "),
        ({"encryptionSalt": "v1"}, "encryptionSalt: it is beside `config:`, where Pulumi reads config, encryptionsalt, "),
        ({"config": {"homlab:hosts": {}}}, "homlab:hosts: unknown key, did you mean `homelab:hosts`?"),
        ({"config": {"Homelab:vms": {}}}, "Homelab:vms: unknown key, did you mean `homelab:vms`?"),
        ({"config": {"homelabs:containers": {}}}, "homelabs:containers: unknown key, did you mean `homelab:containers`?"),
        ({"config": {"contaners": {}}}, "contaners: unknown key, did you mean `homelab:containers`?"),
    ],
)  # fmt: skip
def test_a_key_that_nobody_reads_is_named(whole: dict[str, Any], said: str) -> None:
    with pytest.raises(HomelabError) as error:
        stack_file.check(whole, "Pulumi.x.yaml")
    assert said in error.value.found


@pytest.mark.parametrize(
    "whole",
    [
        {"config": {"homelab:hosts": {}, "hosts": {}}, "encryptionsalt": "v1", "encryptedkey": "x", "secretsprovider": "y"},
        {"config": {"aws:region": "x", "homelab-gaming:vms": {}, "command:x": 1, "pulumi:tags": {}}, "environment": []},
        {"config": None},
        None,
    ],
)  # fmt: skip
def test_keys_of_others_are_theirs(whole: Any) -> None:
    stack_file.check(whole, "Pulumi.x.yaml")


def against_the_settings() -> str:
    """What a program that begins has against its settings."""
    try:
        stack.load()
    except HomelabError as error:
        return str(error)
    return ""


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A program that runs in a folder, as the stack `some`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pulumi, "get_stack", lambda: "organization/homelab/some")
    monkeypatch.setattr(pulumi.runtime, "is_dry_run", lambda: False)
    return tmp_path / "Pulumi.some.yaml"


def load(monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]) -> str:
    monkeypatch.setenv("PULUMI_CONFIG", json.dumps({key: json.dumps(one) for key, one in config.items()}))
    return against_the_settings()


def test_the_program_names_settings_that_ended_up_beside_config(monkeypatch: pytest.MonkeyPatch, running: Path) -> None:
    config = {"homelab:hosts": HOSTS}
    running.write_text(yaml.safe_dump({"config": config, "encryptionsalt": "v1:x", "homelab:containers": {"a": {}}}))
    assert "homelab:containers: it is beside `config:`" in load(monkeypatch, config)
    # Of a file that isn't the one that was read, nothing is said.
    assert load(monkeypatch, {"homelab:hosts": {"other": HOSTS["pve"]}}) == ""


def test_it_names_them_together_with_what_is_therefore_missing(monkeypatch: pytest.MonkeyPatch, running: Path) -> None:
    running.write_text(yaml.safe_dump({"config": {}, "homelab:hosts": HOSTS}))
    message = load(monkeypatch, {})
    assert "homelab:hosts: it is beside `config:`" in message and "homelab:hosts: missing" in message


def test_the_program_names_a_misspelt_project(monkeypatch: pytest.MonkeyPatch, running: Path) -> None:
    config = {"homelab:hosts": HOSTS, "homlab:plan": "never", "aws:region": "x"}
    running.write_text(yaml.safe_dump({"config": config}))
    message = load(monkeypatch, config)
    assert "homlab:plan: unknown key, did you mean `homelab:plan`?" in message and "aws" not in message


def test_the_doctor_names_them_too(tmp_path: Path) -> None:
    file = tmp_path / "Pulumi.some.yaml"
    file.write_text(yaml.safe_dump({"config": {"homelab:hosts": HOSTS}, "homelab:vms": {}}))
    with pytest.raises(HomelabError, match="it is beside `config:`"):
        stack_file.StackFile.read(file)
