"""Secrets in plain text and the example's values are named one by one, before anything runs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pulumi
import pytest
import yaml

from homelab import pull_request
from homelab.settings import Settings, parse, stack_file
from homelab.settings import secrets as secret_settings
from tests.conftest import PROJECT
from tests.unit.test_setting_types import WHOLE
from tests.unit.test_stack_file import against_the_settings

SECURE = {"secure": "AAABAKq=="}
# Every secret of WHOLE[0].
PLACES = [
    "homelab:hosts.pve.ssh.privateKey",
    "homelab:hosts.pve.nvidia.proxy",
    "homelab:vms.gaming.create.cipassword",
    "homelab:containers.ai.create.password",
]


def read_by_pulumi(config: dict[str, Any], *encrypted: str) -> dict[str, str]:
    """The environment that Pulumi gives a program, where values of these keys are encrypted."""
    whole = {f"homelab:{key}": one if isinstance(one, str) else json.dumps(one) for key, one in config.items()}
    return {"PULUMI_CONFIG": json.dumps(whole), "PULUMI_CONFIG_SECRET_KEYS": json.dumps(encrypted)}


def parsed(config: dict[str, Any]) -> Settings:
    """The settings of a stack's file."""
    own = {key.removeprefix("homelab:"): one for key, one in config.items() if key.startswith("homelab:")}
    return parse({key: json.dumps(one) for key, one in own.items()})


def found(config: dict[str, Any], file: Path, *encrypted: str) -> tuple[list[str], list[str]]:
    known = parse(config)
    plain, unknown = secret_settings.in_plain_text(known, read_by_pulumi(config, *encrypted), file)
    return [secret_settings.path_of(one) for one in plain], [secret_settings.path_of(one) for one in unknown]


def written(folder: Path, config: dict[str, Any], *encrypted: str) -> Path:
    """A stack's file with these values encrypted."""
    values = copy.deepcopy({f"homelab:{key}": one for key, one in config.items()})
    for path in encrypted:
        *outer, last = path.removeprefix("homelab:").split(".")
        inner: Any = values[f"homelab:{outer[0]}"]
        for part in outer[1:]:
            inner = inner[part]
        inner[last] = SECURE
    file = folder / "Pulumi.some.yaml"
    file.write_text(yaml.safe_dump({"encryptionsalt": "v1:x", "config": values}))
    return file


def test_without_an_encrypted_value_all_secrets_are_in_plain_text(tmp_path: Path) -> None:
    assert found(WHOLE[0], tmp_path / "none.yaml") == (PLACES, [])


def test_the_file_that_was_read_tells_which_are_encrypted(tmp_path: Path) -> None:
    file = written(tmp_path, WHOLE[0], *PLACES)
    keys = [f"homelab:{key}" for key in ("hosts", "vms", "containers")]
    assert found(WHOLE[0], file, *keys) == ([], [])
    file = written(tmp_path, WHOLE[0], *PLACES[:1], *PLACES[2:])
    assert found(WHOLE[0], file, *keys) == ([PLACES[1]], [])


def test_a_key_encrypted_as_a_whole_has_nothing_in_plain_text(tmp_path: Path) -> None:
    file = tmp_path / "Pulumi.some.yaml"
    file.write_text(yaml.safe_dump({"config": {f"homelab:{key}": SECURE for key in WHOLE[0]}}))
    assert found(WHOLE[0], file, *(f"homelab:{key}" for key in WHOLE[0])) == ([], [])


def test_without_the_file_a_keys_only_secret_is_encrypted_several_are_uncertain(
    tmp_path: Path,
) -> None:
    keys = [f"homelab:{key}" for key in ("hosts", "vms", "containers")]
    other = written(tmp_path, {**WHOLE[0], "hosts": {}, "vms": {}, "containers": {}})
    for file in (tmp_path / "none.yaml", other):
        assert found(WHOLE[0], file, *keys) == ([], PLACES[:2])


def test_a_proxy_without_a_password_is_no_secret(tmp_path: Path) -> None:
    config = copy.deepcopy(WHOLE[0])
    config["hosts"]["pve"]["nvidia"]["proxy"] = "http://proxy.lan:3128"
    assert PLACES[1] not in found(config, tmp_path)[0]


@pytest.fixture
def in_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A running program, as far as stack.load sees one; the list gets its warnings."""
    said: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pulumi, "get_stack", lambda: "some")
    monkeypatch.setattr(pulumi.log, "warn", said.append)
    return said


def loaded(monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], *, preview: bool) -> str:
    """What stands against it."""
    for name, value in read_by_pulumi(config).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(pulumi.runtime, "is_dry_run", lambda: preview)
    return against_the_settings()


@pytest.mark.parametrize("dry", [True, False])
def test_a_plain_secret_is_refused_with_the_command_that_encrypts_it(
    monkeypatch: pytest.MonkeyPatch, in_a_run: list[str], dry: bool
) -> None:
    config = {"hosts": WHOLE[1]["hosts"]}
    message = loaded(monkeypatch, config, preview=dry)
    assert "pulumi config set --stack some --secret --path 'homelab:hosts.pve.ssh.password'" in message
    assert "geheim" not in message and "homelab:allowPlainSecrets: true" in message
    assert loaded(monkeypatch, {**config, "allowPlainSecrets": True}, preview=dry) == ""


def test_the_examples_values_are_named_by_a_preview_and_refused_by_up(
    monkeypatch: pytest.MonkeyPatch, in_a_run: list[str]
) -> None:
    config = yaml.safe_load((PROJECT / "Pulumi.homelab.yaml").read_text(encoding="utf-8"))["config"]
    example = {key.removeprefix("homelab:"): one for key, one in config.items()}
    del example["hosts"]["pve"]["ssh"]["privateKeyFile"]
    example["hosts"]["pve"]["ssh"]["password"] = "FILL-IN"  # as `homelab init` writes it first
    places = ["homelab:hosts.pve.ssh.password", "homelab:hosts.pve.ssh.hostKey"]
    assert loaded(monkeypatch, example, preview=True) == ""
    [warning] = in_a_run
    assert all(place in warning for place in places)
    message = loaded(monkeypatch, example, preview=False)
    assert f"still as in the example: {', '.join(places)}" in message
    assert "ssh-keyscan" in message and "--secret --path" in message
    assert "allowPlainSecrets" not in message


def test_every_place_that_the_examples_mark_is_found() -> None:
    for file in ("Pulumi.homelab.yaml", "examples/gaming_vm/Pulumi.gaming.yaml"):
        text = (PROJECT / file).read_text(encoding="utf-8")
        known = parsed(yaml.safe_load(text)["config"])
        assert ("hosts", "pve", "ssh", "hostKey") in secret_settings.left_open(known)


def test_a_pull_requests_preview_asks_no_host_and_needs_no_passphrase(tmp_path: Path) -> None:
    text = written(tmp_path, WHOLE[0], *PLACES).read_text(encoding="utf-8")
    without = pull_request.settings(text, with_secrets=False)
    found = yaml.safe_load(without)
    assert list(found) == ["config"] and SECURE["secure"] not in without
    assert found["config"]["homelab:plan"] == "never"
    assert secret_settings.secrets(parsed(found["config"])) == []
    whole = yaml.safe_load(text)
    whole["config"]["homelab:plan"] = "never"
    assert yaml.safe_load(pull_request.settings(text, with_secrets=True)) == whole


def test_a_plain_secret_in_a_pull_request_is_still_named(tmp_path: Path) -> None:
    text = written(tmp_path, WHOLE[0], *PLACES[:1]).read_text(encoding="utf-8")
    known = parsed(yaml.safe_load(pull_request.settings(text, with_secrets=False))["config"])
    assert [secret_settings.path_of(one) for one in secret_settings.secrets(known)] == PLACES[1:]


def test_a_key_that_yaml_takes_for_a_number_or_a_truth_value_is_a_text_as_for_pulumi() -> None:
    assert stack_file.readable(stack_file.parsed("{580.105: a, on: b, true: c, 7: {01:00.0: off}}")) == {
        "580.105": "a",
        "on": "b",
        "true": "c",
        "7": {"01:00.0": "off"},
    }
