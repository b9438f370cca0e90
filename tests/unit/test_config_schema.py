"""docs/config.schema.json, and the settings files of the repository: what an editor checks is what the program takes."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from docs.tables import schema as config_schema
from homelab import tables
from homelab.settings import Settings, parse
from homelab.settings.stack_file import readable
from tests.conftest import PROJECT
from tests.rows import rows
from tests.unit.test_setting_types import WHOLE

SCHEMA = config_schema.schema()
CHECK = jsonschema.Draft7Validator(SCHEMA)


def mistakes(whole: Any) -> list[str]:
    return [f"{'.'.join(map(str, one.absolute_path))}: {one.message}" for one in CHECK.iter_errors(whole)]


def test_the_file_is_what_the_models_say() -> None:
    assert config_schema.FILE.read_text(encoding="utf-8") == config_schema.text(), "run `make docs`"
    jsonschema.Draft7Validator.check_schema(SCHEMA)


def test_each_key_is_described() -> None:
    for name, part in SCHEMA["definitions"].items():
        for model in [part, *part.get("anyOf", ())]:
            for key, about in model.get("properties", {}).items():
                assert about.get("description") or (name, key) == ("Encrypted", "secure"), f"{name}.{key}"


@rows(
    "file",
    [
        PROJECT / "Pulumi.homelab.yaml",
        PROJECT / "lab" / "Pulumi.lab.yaml",
        *sorted(PROJECT.glob("examples/settings/*.yaml")),
    ],
    ids=lambda file: file.name,
)
def test_the_repositorys_settings_files_fit_the_schema_and_load(file: Path) -> None:
    def loaded(config: dict[str, Any]) -> Settings:
        return parse({key.removeprefix("homelab:"): json.dumps(readable(one)) for key, one in config.items()})

    text = file.read_text(encoding="utf-8")
    whole = yaml.safe_load(text)
    assert mistakes(whole) == []
    loaded(whole["config"])
    # The modeline leads from the file to the schema.
    [(where)] = re.findall(r"^# yaml-language-server: \$schema=(.+)$", text.splitlines()[0])
    assert (file.parent / where).resolve() == config_schema.FILE


@rows("file", sorted((PROJECT / "lab" / "stacks").glob("*.yaml")), ids=lambda file: file.name)
def test_a_stack_of_the_lab_fits_the_schema(file: Path) -> None:
    stack = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    ssh = {"hostKeyFile": "key.pub", "agent": True}
    host = {"address": "pve.lan", "ssh": ssh} | {k: v for k, v in stack.items() if k not in ("vms", "containers")}
    config = {"homelab:hosts": {"pve": host}}
    for kind in ("vms", "containers"):
        config[f"homelab:{kind}"] = {name: {"host": "pve"} | one for name, one in stack.get(kind, {}).items()}
    assert mistakes({"config": config}) == []


def test_whatever_the_program_takes_the_schema_takes() -> None:
    for config in WHOLE:
        assert mistakes({"config": {f"homelab:{key}": one for key, one in config.items()}}) == []


BASE = tables.read(PROJECT / "Pulumi.homelab.yaml")


def changed(place: str, value: Any) -> dict[str, Any]:
    whole: dict[str, Any] = copy.deepcopy(BASE)
    *outer, last = place.split(".")
    inner = whole["config"]
    for part in outer:
        inner = inner[part]
    inner[last] = value
    return whole


# What is set where, below `config`.
@rows(
    ("place", "value"),
    [
        ("homelab:hosts.pve.ssh.password", {"secure": "v1:x"}),
        ("homelab:hosts.pve.address", {"secure": "v1:x"}),
        ("homelab:hosts.pve.nvidia", None),
        ("homelab:vms.sandbox.gpus", [{"gpu": "rtx5090", "xVga": True}]),
        ("homelab:containers.ollama", {"host": "pve", "ctid": 901, "gpuAssignment": 0}),
        ("aws:region", "eu-central-1"),
    ],
)
def test_the_schema_takes(place: str, value: Any) -> None:
    assert mistakes(changed(place, value)) == []


@rows(
    ("place", "value"),
    [
        ("homelab:plan", "sometimes"),
        ("homelab:host", {}),
        ("homelab:hosts.pve.adress", "192.168.0.202"),
        ("homelab:hosts.pve.ssh.port", 70000),
        ("homelab:hosts.pve.ssh.agent", "yes"),
        ("homelab:vms.sandbox.vmid", 99),
        ("homelab:vms.sandbox.gpus", [{"xVga": True}]),
        ("homelab:vms.sandbox", {"vmid": 103}),
        ("homelab:hosts.pve.gpus.rtx5090.use", "container"),
        ("homelab:hosts.pve.gpus", {"secure": "v1:x"}),
    ],
)
def test_the_schema_marks(place: str, value: Any) -> None:
    assert mistakes(changed(place, value)) != []


def test_a_key_beside_config_is_marked_but_pulumis_own_are_not() -> None:
    assert mistakes({**BASE, "homelab:containers": {}}) != []
    assert mistakes({**BASE, "encryptionsalt": "v1:x", "secretsprovider": "passphrase", "encryptedkey": "x"}) == []
