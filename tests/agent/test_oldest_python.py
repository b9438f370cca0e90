"""What runs on a host is written for Python 3.10 (Ubuntu 22.04) and later: its syntax, and no name of the library that came later.

Where other Pythons are (on the PATH, or pyenv's), each compiles and imports all of it, and does a layer's work. Elsewhere a list of names that 3.10 hasn't
stands in for them: it is none of all names.
"""

from __future__ import annotations

import ast
import base64
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from homelab.remote import agent
from homelab.remote.scripts import FOLDER
from remote_scripts.both.card_values import Value, Wanted
from remote_scripts.both.read_system import Wanted as Reading
from tests import sent_along
from tests.agent.kit import Host
from tests.rows import rows
from tests.waiting import PATIENCE

OLDEST = (3, 10)
TOO_OLD, NEW_ENOUGH = ("3.6", "3.8", "3.9"), ("3.10", "3.11", "3.12", "3.13", "3.14")
MODULES = sorted(FOLDER.rglob("*.py"))
#: Of the library, by the module's documentation ("New in version 3.11" and later); what is only a method is named after a dot.
NEWER = {
    "tomllib": {""},
    "asyncio": {"TaskGroup", "timeout", "timeout_at", "Runner", "Barrier"},
    "contextlib": {"chdir"},
    "datetime": {"UTC"},
    "enum": {"StrEnum", "verify", "member", "nonmember", "property", "ReprEnum", "EnumCheck", "FlagBoundary"},
    "functools": {"Placeholder"},
    "hashlib": {"file_digest"},
    "http": {"HTTPMethod"},
    "inspect": {"getmembers_static", "BufferFlags", "markcoroutinefunction"},
    "itertools": {"batched"},
    "logging": {"getLevelNamesMapping", "getHandlerByName"},
    "math": {"cbrt", "exp2", "sumprod", "fma"},
    "operator": {"call", "is_none", "is_not_none"},
    "os": {"unshare", "setns", "listdrives", "PIDFD_NONBLOCK", "process_cpu_count", "timerfd_create"},
    "os.path": {"isjunction", "splitroot", "isreserved"},
    "re": {"NOFLAG"},
    "string": {"Template.get_identifiers"},
    "sys": {"exception", "monitoring", "activate_stack_trampoline"},
    "types": {"get_original_bases", "CapsuleType"},
    "typing": {
        "Self", "LiteralString", "Never", "Required", "NotRequired", "Unpack", "TypeVarTuple", "assert_never", "assert_type", "reveal_type",
        "dataclass_transform", "get_overloads", "clear_overloads", "override", "TypeAliasType", "ReadOnly", "TypeIs", "NoDefault",
    },
}  # fmt: skip
BUILTINS = {"ExceptionGroup", "BaseExceptionGroup", "PythonFinalizationError"}
#: Methods and keywords that nothing older has, whatever they are called on.
ATTRIBUTES = {"add_note", "walk_up", "from_uri", "full_match", "is_junction", "file_digest"}
KEYWORDS = {
    "rmtree": {"onexc"}, "glob": {"case_sensitive", "recurse_symlinks"}, "rglob": {"case_sensitive", "recurse_symlinks"},
    "relative_to": {"walk_up"}, "mkdtemp": {"delete"}, "NamedTemporaryFile": {"delete_on_close"}, "TemporaryDirectory": {"delete"},
    "extractall": {"filter"}, "exists": {"follow_symlinks"}, "is_file": {"follow_symlinks"}, "is_dir": {"follow_symlinks"},
    "Popen": {"process_group"}, "run": {"process_group"},
}  # fmt: skip


def _newer_names(source: str) -> list[str]:
    """What a source names that Python 3.10's library hasn't, with its line."""
    found: list[str] = []
    known: dict[str, str] = {}
    tree = ast.parse(source, feature_version=OLDEST)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                known[alias.asname or alias.name] = alias.name
                if "" in NEWER.get(alias.name, set()):
                    found.append(f"{node.lineno}: {alias.name}")
        elif isinstance(node, ast.ImportFrom) and node.module:
            newer = NEWER.get(node.module, set())
            found += [
                f"{node.lineno}: {node.module}.{one.name}" for one in node.names if one.name in newer or "" in newer
            ]
        elif isinstance(node, ast.TryStar):
            found.append(f"{node.lineno}: except*")
        elif isinstance(node, ast.Subscript) and any(
            isinstance(one, ast.Starred) for one in (node.slice.elts if isinstance(node.slice, ast.Tuple) else [])
        ):
            found.append(f"{node.lineno}: a star in an index")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            module = known.get(ast.unparse(node.value), "")
            if node.attr in NEWER.get(module, set()) or node.attr in ATTRIBUTES:
                found.append(f"{node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.Name) and node.id in BUILTINS:
            found.append(f"{node.lineno}: {node.id}")
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            given = {one.arg for one in node.keywords if one.arg}
            found += [f"{node.lineno}: {name}({one}=)" for one in sorted(given & KEYWORDS.get(name, set()))]
    return found


@rows("path", MODULES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_a_module_is_in_python_3_10(path: Path) -> None:
    assert _newer_names(path.read_text(encoding="utf-8")) == []


@rows(
    ("source", "found"),
    [
        ("import tomllib", "1: tomllib"),
        ("from typing import Self", "1: typing.Self"),
        ("import datetime\ndatetime.UTC", "2: datetime.UTC"),
        ("try:\n    pass\nexcept* ValueError:\n    pass", "1: except*"),
        ("import shutil\nshutil.rmtree('x', onexc=None)", "2: rmtree(onexc=)"),
        ("raise ExceptionGroup('x', [])", "1: ExceptionGroup"),
        ("x: tuple[*y]", "1: a star in an index"),
    ],
)
def test_what_came_later_is_found(source: str, found: str) -> None:
    try:
        assert _newer_names(source) == [found]
    except SyntaxError:  # this Python tells 3.10's syntax by itself
        assert found in ("1: except*", "1: a star in an index")


def _other_pythons() -> dict[str, str]:
    """Each other version that this machine has, such as 3.10, and its program."""
    found: dict[str, str] = {}
    for version in (*TOO_OLD, *NEW_ENOUGH):
        kept = (Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python{version}")
        for program in [shutil.which(f"python{version}"), *map(str, kept)]:
            if program is None:
                continue
            said = subprocess.run(
                [program, "--version"], capture_output=True, text=True
            )  # one of pyenv's shims may do nothing
            if said.returncode == 0 and said.stdout.startswith(f"Python {version}."):
                found[version] = program
    return found


PYTHONS = _other_pythons()


@pytest.mark.parametrize("version", NEW_ENOUGH)
def test_it_is_put_there_and_works_by_another_python(version: str, host: Host) -> None:
    if version not in PYTHONS:
        pytest.skip(f"no Python {version} on this machine")
    python = [PYTHONS[version], "-I", "-S", "-B", "-X", "utf8"]

    def run(*words: str, text: str) -> str:
        done = subprocess.run(
            [*python, *words],
            input=text,
            env={"ROOT": str(host.root)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert (done.returncode, done.stderr.count("Warning")) == (0, 0), done.stdout + done.stderr
        return done.stdout

    place = "/var/lib/homelab/agents/x/agent.pyz"
    sent = base64.b64encode(agent.archive()).decode()
    put = (FOLDER / "put_agent.py").read_text(encoding="utf-8")
    run("-", text=f"{put}\nput({place!r}, {sent!r})\n")
    file = str(host.root / place[1:])
    modules = sorted(agent.modules_of(*(f"remote_scripts.layers.{one}" for one in agent.layers())))
    imports = (
        f"import sys, importlib\nsys.path.insert(0, {file!r})\nfor name in {modules!r}: importlib.import_module(name)\n"
    )
    run("-", text=imports)
    for name, text in {"vendor": "0x10de", "device": "0x2b85", "class": "0x030000", "d3cold_allowed": "1"}.items():
        host.write(f"/sys/bus/pci/devices/0000:01:00.0/{name}", f"{text}\n")
    before = host.lasting()
    value = Value(address="0000:01:00.0", id="10de:2b85", attribute="d3cold_allowed", value="0")
    request = agent.request("card_values", Wanted(values=(value,)), seconds=60)
    assert run(file, "apply", text=request) == '{"changed":true}\n'
    assert host.read("/sys/bus/pci/devices/0000:01:00.0/d3cold_allowed").strip() == "0"
    assert run(file, "revert", text=request) == '{"changed":true}\n'
    assert host.lasting() == before


@pytest.mark.parametrize("version", [*TOO_OLD, *NEW_ENOUGH])
def test_sent_along_it_answers_by_another_python_or_says_which_it_needs(version: str, host: Host) -> None:
    """As into a VM."""
    if version not in PYTHONS:
        pytest.skip(f"no Python {version} on this machine")
    _, *words = shlex.split(agent.command_in_memory("root"))
    host.write("/etc/os-release", "ID=ubuntu\nVERSION_ID=22.04\n")
    before = host.tree()
    done = subprocess.run(
        [PYTHONS[version], *words],
        input=sent_along.text("read", agent.request("read_system", Reading())),
        env={"ROOT": str(host.root), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    if version in TOO_OLD:
        found = re.findall(r"(?m)^(wanted|found|why|next): +(.+)$", done.stdout)
        assert (
            done.returncode == 1
            and not done.stderr
            and [name for name, _ in found] == ["wanted", "found", "why", "next"]
        )
        assert found[1][1].startswith(f"Python {version}.")
    else:
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(sent_along.answer(done.stdout))["distribution"] == "ubuntu"
    assert host.tree() == before
