"""What Pulumi's own commands do to a settings file, and what they read in it."""

from __future__ import annotations

import difflib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from homelab.init.settings import flow
from homelab.settings.stack_file import parsed, readable
from lab.engine import install
from tests.conftest import PROJECT
from tests.engine_stack import quick_environment
from tests.sampling import sample

FILES = [PROJECT / "Pulumi.homelab.yaml", *sorted(PROJECT.glob("examples/settings/*.yaml"))]


@pytest.mark.parametrize("file", [FILES[0], *sample(FILES[1:], 3, "settings files")], ids=lambda file: file.name)
def test_stack_init_and_config_set_move_no_comment(engine: install.Engine, tmp_path: Path, file: Path) -> None:
    secret = "homelab:hosts.pve.ssh.privateKey"
    shutil.copy(PROJECT / "Pulumi.yaml", tmp_path)
    settings = tmp_path / "Pulumi.some.yaml"
    shutil.copy(file, settings)
    (tmp_path / "state").mkdir()
    environment = quick_environment(engine, tmp_path / "state")

    def pulumi(*arguments: str, given: str = "") -> None:
        command = [str(engine.pulumi), *arguments, "--stack", "some", "--non-interactive"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, input=given, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr

    pulumi("stack", "init")
    pulumi("config", "set", "--secret", "--path", secret, given="geheim")
    pulumi("config", "set", "homelab:plan", "never")
    now = settings.read_text().splitlines()
    # What is gone: lines whose value is another one now, and empty ones.
    differ = list(difflib.unified_diff(file.read_text().splitlines(), now, n=0, lineterm=""))[2:]
    gone = {line[1:].strip().partition("#")[0].strip() for line in differ if line.startswith("-")}
    assert gone <= {"", "homelab:plan: auto"}
    comments = [line.split("# ", 1)[1] for line in file.read_text().splitlines() if "# " in line]
    assert [one for one in comments if not any(one in line for line in now)] == []


READ = """\
config:
  homelab:hosts:
    pve: {address: 01:00.0, where: [41:00, "0000:41:00.0", 10:00], on: yes, off: n, true: True, 10:00: FALSE}
    numbers: {580.105: 580.105, octal: 0103, hexadecimal: 0x1f, many: 1_000, none: ~}
    of_1_2: [1e3, -1.5E-3, +.5, 0o17, -0O7, 08, 0B1, 0X1F, 1_0e3, 1e, 0x, 0o8, e3, 1.2.3, 1__0, 190:20:30, 0x_, 0b_1]
    names: {0o17: b}
"""
#: Texts that a reader may take for something else.
TEXTS = ["1e3", "1E3", "-1.5e-3", "+.5", "0o17", "0O17", "08", "0B1", "0X1F", "1_0e3", "01:00.0", "off", "y", "~"]


def pulumi_reads(engine: install.Engine, tmp_path: Path, text: str) -> object:
    """What Pulumi's CLI has of a settings file's hosts."""
    shutil.copy(PROJECT / "Pulumi.yaml", tmp_path)
    (tmp_path / "Pulumi.some.yaml").write_text(text)
    (tmp_path / "state").mkdir()
    environment = quick_environment(engine, tmp_path / "state")

    def pulumi(*arguments: str) -> str:
        command = [str(engine.pulumi), *arguments, "--stack", "some", "--non-interactive"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    pulumi("stack", "init")
    return json.loads(pulumi("config", "--json"))["homelab:hosts"]["objectValue"]


def test_a_file_is_read_as_pulumi_reads_it(engine: install.Engine, tmp_path: Path) -> None:
    assert readable(parsed(READ)["config"]["homelab:hosts"]) == pulumi_reads(engine, tmp_path, READ)


def test_a_text_that_init_writes_is_a_text_for_pulumi(engine: install.Engine, tmp_path: Path) -> None:
    written = flow({"texts": TEXTS})
    assert pulumi_reads(engine, tmp_path, f"config:\n  homelab:hosts: {written}\n") == {"texts": TEXTS}
