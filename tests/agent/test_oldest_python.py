"""What runs on a host is written for Python 3.10 (Ubuntu 22.04) and later: where other Pythons are (on the PATH, or pyenv's), each compiles and imports
all of it, and does a layer's work. `make lint` asks mypy for its syntax, and for names of the library that came later.
"""

from __future__ import annotations

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
from lab.host.state import of_root
from remote_scripts.both.card_values import Value, Wanted
from remote_scripts.both.read_system import Wanted as Reading
from tests import sent_along
from tests.agent.kit import Host, ran

TOO_OLD, NEW_ENOUGH = ("3.6", "3.8", "3.9"), ("3.10", "3.11", "3.12", "3.13", "3.14")


def _other_python(version: str) -> str:
    """The program of a version that this machine has; the test is skipped where it has none. Not asked when tests are collected, which each worker does."""
    kept = (Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python{version}")
    for program in filter(None, [*map(str, kept), shutil.which(f"python{version}")]):
        said = subprocess.run(
            [program, "--version"], capture_output=True, text=True
        )  # one of pyenv's shims may do nothing
        if said.returncode == 0 and said.stdout.startswith(f"Python {version}."):
            return program
    pytest.skip(f"no Python {version} on this machine")


@pytest.mark.parametrize("version", NEW_ENOUGH)
def test_it_is_put_there_and_works_by_another_python(version: str, host: Host) -> None:
    python = [_other_python(version), "-I", "-S", "-B", "-X", "utf8"]

    def run(*words: str, text: str) -> str:
        done = ran(*python, *words, text=text, HOMELAB_ROOT=str(host.root))
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
    host.function("0000:01:00.0", "0x030000", "10de:2b85", d3cold_allowed="1\n")
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
    _, *words = shlex.split(agent.command_in_memory("root"))
    host.write("/etc/os-release", "ID=ubuntu\nVERSION_ID=22.04\n")
    before = host.tree()
    text = sent_along.text("read", agent.request("read_system", Reading()))
    done = ran(_other_python(version), *words, text=text, **of_root(host.root), PATH=os.environ["PATH"])
    if version in TOO_OLD:
        found = re.findall(r"(?m)^(wanted|found|why|next): +(.+)$", done.stdout)
        assert (done.returncode, done.stderr) == (1, "")
        assert [name for name, _ in found] == ["wanted", "found", "why", "next"]
        assert found[1][1].startswith(f"Python {version}.")
    else:
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(sent_along.answer(done.stdout))["distribution"] == "ubuntu"
    assert host.tree() == before
