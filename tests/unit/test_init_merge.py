"""A settings file that `homelab init` adds to: every line that isn't changed stays, byte by byte, and so does every comment but those in
a list of which something goes."""

from __future__ import annotations

import difflib
from typing import Any

import pytest
import yaml

from homelab.errors import Mistake
from homelab.init import settings
from homelab.settings.stack_file import parsed
from tests.conftest import PROJECT
from tests.rows import rows


def merged(text: str, values: dict[str, Any]) -> str:
    return settings.merged(text, yaml.safe_dump({"config": values}, sort_keys=False), (), "pve")


def set_in(into: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    for key, value in values.items():
        into[key] = set_in(dict(into.get(key) or {}), value) if isinstance(value, dict) else value
    return into


@rows("newline", ["\n", "\r\n"])
@rows(("case", "values", "gone", "come"), [
    # what is set; lines that go; lines that come
    ("nothing", {}, [], []),
    ("what is there already", {"homelab:plan": "auto", "homelab:hosts": {"pve": {"gpus": {"second": {"address": "01:00.0"}}}}}, [], []),
    ("a value", {"homelab:plan": "never"}, ["  homelab:plan: auto # always, never"], ["  homelab:plan: never # always, never"]),
    ("a value in braces",
        {"homelab:hosts": {"pve": {"ssh": {"user": "admin"}}}},
        ["      ssh: {user: root, agent: true} # flow"],
        ["      ssh: {user: admin, agent: true} # flow"],
    ),
    ("a key in braces",
        {"homelab:hosts": {"pve": {"gpus": {"first": {"use": "lxc"}}}}},
        ['        first: {match: "10de:2b85"} # a card'],
        ['        first: {match: "10de:2b85", use: lxc} # a card'],
    ),
    ("a key at the end of a block",
        {"homelab:hosts": {"pve": {"reboot": "manual"}}},
        [],
        ["      reboot: manual"],
    ),
    ("a mapping at the end of a block that comments follow",
        {"homelab:hosts": {"pve": {"gpus": {"third": {"match": "10de:2204", "use": "vm"}}}}},
        [],
        [
            "          use: vm",
            "        third:",
            "          match: 10de:2204",
        ],
    ),
    ("keys that end at one place",
        {"homelab:hosts": {"pve": {"nvidia": {"driver": "580"}, "gpus": {"third": {"use": "vm"}}, "reboot": "manual"}}},
        [],
        ["        third:", "          use: vm", "      nvidia:", "        driver: '580'", "      reboot: manual"],
    ),
    ("the first key of an empty mapping",
        {"homelab:containers": {"ollama": {"host": "pve", "ctid": 901, "gpus": ["first"], "nvidia": {}}}},
        ["  homelab:containers: {} # none yet"],
        ["  homelab:containers: # none yet", "    ollama:", "      host: pve", "      ctid: 901", "      gpus:", "      - first", "      nvidia: {}"],
    ),
    ("an item of a list",
        {"homelab:vms": {"sandbox": {"gpus": ["first", "second", "third"]}}},
        [],
        ["        - third"],
    ),
    ("an item less",
        {"homelab:vms": {"sandbox": {"gpus": ["second"]}}},
        ["      gpus:", "        - first # one", "        # between", "        - second"],
        ["      gpus: [second]"],
    ),
    ("no item left",
        {"homelab:vms": {"sandbox": {"gpus": []}}},
        ["      gpus:", "        - first # one", "        # between", "        - second"],
        ["      gpus: []"],
    ),
    ("a section", {"homelab:allowPlainSecrets": True}, [], ["  homelab:allowPlainSecrets: true"]),
])  # fmt: skip
def test_only_what_is_set_changes(
    case: str, values: dict[str, Any], gone: list[str], come: list[str], newline: str
) -> None:
    file = """# head
config:
  # about hosts
  homelab:hosts: # behind hosts
    pve: # the node
      address: 192.168.0.202 # where
      ssh: {user: root, agent: true} # flow
      gpus:
        # before a card
        first: {match: "10de:2b85"} # a card
        second:
          match: "10de:2684" # from lspci
          address: 01:00.0
          # before use
          use: vm
      # tail of pve
  # before vms
  homelab:vms:
    sandbox:
      host: pve
      vmid: 103
      gpus:
        - first # one
        # between
        - second
  # before containers
  homelab:containers: {} # none yet
  homelab:plan: auto # always, never
encryptionsalt: v1:abc
# the end
"""
    before = file.replace("\n", newline)
    after = merged(before, values)
    expected = parsed(file)
    set_in(expected["config"], values)
    assert parsed(after) == expected
    assert after.count("\n") == after.count(newline)
    differ = list(difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm=""))[2:]
    assert [line[1:] for line in differ if line.startswith("-")] == gone
    assert [line[1:] for line in differ if line.startswith("+")] == come
    # Whatever was put in, a second time changes nothing.
    assert merged(after, values) == after


@pytest.mark.parametrize(
    "file", ["Pulumi.homelab.yaml", *(f"examples/settings/{n}.yaml" for n in ("vm", "containers"))]
)
def test_the_examples_keep_their_comments(file: str) -> None:
    before = (PROJECT / file).read_text(encoding="utf-8")
    card = {"match": "10de:2204", "address": "0000:1d:00", "use": "lxc"}
    values = {
        "homelab:hosts": {"pve": {"address": "pve.lan", "gpus": {"another": card}, "nvidia": {"driver": "580"}}},
        "homelab:vms": {"other": {"host": "pve", "vmid": 104, "gpus": []}},
        "homelab:containers": {"third": {"host": "pve", "ctid": 903, "gpus": ["another"]}},
    }
    after = merged(before, values)
    expected = yaml.safe_load(before)
    set_in(expected["config"], values)
    assert yaml.safe_load(after) == expected
    comments = [line.split("#", 1)[1] for line in before.splitlines() if "#" in line]
    kept = [line.split("#", 1)[1] for line in after.splitlines() if "#" in line]
    assert [one for one in comments if one not in kept] == []


def test_a_new_file_names_its_schema() -> None:
    made = merged("", {"homelab:hosts": {"pve": {"address": "pve.lan"}}})
    assert made.startswith("# yaml-language-server: $schema=docs/config.schema.json\n# `homelab init` wrote this file")
    assert yaml.safe_load(made) == {"config": {"homelab:hosts": {"pve": {"address": "pve.lan"}}}}


@rows(
    "value",
    ["10de:2b85", "0000:01:00", "580", "12.10", "1e3", "yes", "null", "~", "on", "a: b", "a #b", "- x", "{x}", "é", 'a"b\\', " a", "", "a\nb", "0x10", "12:30:45", "=", "<<", "!x", "a\tb"],
)  # fmt: skip
def test_a_text_stays_a_text_for_every_reader(value: str) -> None:
    made = merged("config: {}\n", {"homelab:hosts": {"x": value, "y": [value], "z": {"w": [{"v": value}]}}})
    found = yaml.safe_load(made)["config"]["homelab:hosts"]
    assert found == {"x": value, "y": [value], "z": {"w": [{"v": value}]}}


@rows(
    "empty",
    [
        "config:\n",
        "config: {}\n",
        "encryptionsalt: v1:x\n",
        "# a comment\n",
        "config: # here\n",
        "config: null\n",
        "{}\n",
        "# b\n{}\n",
        "# b",
        "# b\nconfig: {}\n# c",
        "# b\nconfig: {\n}\nencryptionsalt: v1:x",
    ],
)
def test_a_file_without_settings_gets_them(empty: str) -> None:
    made = merged(empty, {"homelab:plan": "never"})
    assert yaml.safe_load(made) == (yaml.safe_load(empty) or {}) | {"config": {"homelab:plan": "never"}}
    assert all(line.partition("#")[2] + "\n" in made for line in empty.splitlines())


@rows(
    "text",
    [
        "config: {'homelab:hosts': {pve: {address: a,},},}\n",
        "config:\n  homelab:hosts: {\n    pve: {address: a}, # one, the first\n  }\n",
        "config:\n  homelab:hosts: {\n    pve: {address: a} # one, the first\n  }\n",
        "config:\n  homelab:hosts:\n    pve:\n      key: |\n        a\n        b",
        "config:\n  homelab:hosts:\n    pve:\n      key: |+\n        a\n\n\n",
        "config:\n  homelab:hosts:\n    pve:\n      key: >2+\n          a\n\n  homelab:plan: auto\n",
        "config: !!map\n  homelab:hosts: !!map\n    pve:\n      address: !!str 1\n",
        "config:\n  ? homelab:hosts\n  : pve:\n      address: a\n",
        "---\nconfig:\n  homelab:hosts:\n    pve:\n      address: a\n...\n",
    ],
)
def test_a_file_can_be_written_in_any_form(text: str) -> None:
    values = {
        "homelab:hosts": {"pve": {"reboot": "manual", "gpus": {"first": {"use": "vm"}}}, "other": {"address": "b"}},
        "homelab:vms": {"sandbox": {"host": "pve"}},
    }
    expected = parsed(text if text.endswith("\n") else f"{text}\n")
    set_in(expected["config"], values)
    assert parsed(merged(text, values)) == expected


@rows(("text", "why"), [
    ("config: [\n", "line 2"),
    ("- a\n", "something else than keys"),
    ("config: 3\n", "something else than keys"),
    ("config:\n  homelab:hosts: pve\n", "something else than keys"),
    ("config:\n  homelab:hosts:\n    a: {}\n  'homelab:hosts':\n    pve: {}\n", "line 4 has the key homelab:hosts a second time"),
    ("config:\n  homelab:hosts:\n    pve: {}\nother: {a: 1, a: 2}\n", "the key a a second time"),
    ("config:\n  homelab:hosts:\n    a: &same\n      address: b\n    pve: *same\n", "has an alias"),
    ("config:\n  homelab:hosts:\n    a: &same {address: b}\n    pve: *same\n", "has an alias"),
    ("config:\n  homelab:hosts:\n    pve:\n      key: !!str |+\n        a\n\n", "has a form of YAML that isn't known"),
])  # fmt: skip
def test_what_can_not_be_added_to_is_refused(text: str, why: str) -> None:
    with pytest.raises(Mistake, match=f"can't be added to: .*{why}"):
        merged(text, {"homelab:hosts": {"pve": {"address": "x"}}})


def test_an_encrypted_value_is_replaced_whole_and_one_that_stays_is_untouched() -> None:
    before = "config:\n  homelab:hosts:\n    pve:\n      ssh:\n        user: x # t\n        password:\n          secure: v1:abc\n        # after\n        port: 1\n"
    after = merged(before, {"homelab:hosts": {"pve": {"ssh": {"user": "y"}}}})
    assert after == before.replace("user: x", "user: y")
    after = merged(before, {"homelab:hosts": {"pve": {"ssh": {"password": "FILL-IN"}}}})
    assert yaml.safe_load(after)["config"]["homelab:hosts"]["pve"]["ssh"]["password"] == "FILL-IN"
    assert "        # after\n        port: 1\n" in after
