"""lab/deploy.py: what `make up` and `make preview` say last, and what `. .lab/NAME/env` leads to."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from homelab import events
from lab import deploy, progress
from tests.conftest import PROJECT
from tests.unit.test_events import LOGS


@pytest.mark.parametrize("verb", ["up", "preview"])
def test_the_hints_name_the_scenario_and_that_its_lab_runs(verb: str) -> None:
    text = deploy.hints(verb, "phoenix", ".lab/phoenix", 0)
    assert "The simulated host `phoenix` runs in .lab/phoenix, until `make down SCENARIO=phoenix`" in text
    assert all("SCENARIO=phoenix" in line for line in text.splitlines() if line.strip().startswith("make"))
    assert max(map(len, text.splitlines())) <= 100


def test_the_hints_of_the_usual_scenario_are_what_a_person_types() -> None:
    assert "\n  make down\n" in deploy.hints("up", "rtx5090", ".lab/rtx5090", 0)


@pytest.mark.skipif(not shutil.which("make"), reason="make isn't there")
@pytest.mark.parametrize("target", ["up", ".venv/.dev"])
def test_what_the_first_make_installs_is_said_before_it_is(tmp_path: Path, target: str) -> None:
    (tmp_path / "Makefile").symlink_to(PROJECT / "Makefile")
    names = [
        "requirements.txt",
        "lab/requirements.txt",
        *(["tests/requirements.txt"] if target == ".venv/.dev" else []),
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    planned = subprocess.run(["make", "-n", target], cwd=tmp_path, capture_output=True, text=True, check=True)
    steps = [line for line in planned.stdout.splitlines() if "installing what" in line or "requirements.txt" in line]
    assert ["pip" in step for step in steps] == [False, True] * len(names), steps
    assert ("--jobs 2 .venv/.lab .engine" in planned.stdout) is (target == "up")


@pytest.mark.skipif(not shutil.which("make"), reason="make isn't there")
def test_the_packages_that_are_counted_are_never_fewer_nor_more_than_there_are(tmp_path: Path) -> None:
    """pip takes a package out before it puts a newer one in; others were there before."""
    (tmp_path / "Makefile").symlink_to(PROJECT / "Makefile")
    (tmp_path / "requirements.txt").write_text("a==1\nb==1\nc==1\n")
    places, programs = tmp_path / ".venv/lib/python3/site-packages", tmp_path / "bin"
    for folder in (places, programs, tmp_path / ".venv/bin"):
        folder.mkdir(parents=True)
    sleep, (one, *more) = shutil.which("sleep"), [places / f"{name}.dist-info" for name in "abcd"]
    pip = f"mkdir {one} {more[0]}; {sleep} 0.7; rmdir {one}; {sleep} 0.7; mkdir {one} {more[1]} {more[2]}; {sleep} 0.7"
    for file, text in ((tmp_path / ".venv/bin/python", pip), (programs / "sleep", f"{sleep} 0.2")):
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    make = ["make", "-o", ".venv/bin/python", ".venv/.program"]
    made = subprocess.run(make, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    counted = re.findall(r"(\d) of at most (\d) packages", made)
    assert counted == sorted(counted) and {*counted} - {("0", "3")} == {("2", "3"), ("3", "3")}, made


@pytest.mark.skipif(not shutil.which("make"), reason="make isn't there")
def test_clean_leaves_the_state_of_a_stack_that_is_no_labs(tmp_path: Path) -> None:
    (tmp_path / "Makefile").symlink_to(PROJECT / "Makefile")
    stacks = tmp_path / ".lab" / "rtx5090" / "pulumi" / ".pulumi" / "stacks" / "homelab"
    stacks.mkdir(parents=True)
    for name in ("lab.json", "lab.json.bak", "mine.json"):
        (stacks / name).touch()
    clean = ["make", "PYTHON=false", "clean"]
    done = subprocess.run(clean, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and (stacks / "mine.json").exists()
    assert "mine.json" in done.stdout and "next:   `pulumi stack export` each" in done.stdout
    (stacks / "mine.json").unlink()
    assert subprocess.run(clean, cwd=tmp_path, capture_output=True).returncode == 0
    assert not (tmp_path / ".lab").exists()


def test_after_an_up_that_failed_the_hints_say_that_it_goes_on() -> None:
    assert "goes on from there" in deploy.hints("up", "phoenix", ".lab/phoenix", 255)


def test_after_a_preview_that_refused_nobody_is_told_to_do_it() -> None:
    assert "make up" not in deploy.hints("preview", "crowded-group", ".lab/crowded-group", 255)


def test_the_environment_says_that_it_is_a_labs(tmp_path: Path) -> None:
    lab = deploy.Deployment.__new__(deploy.Deployment)
    lab.state, lab.environment = tmp_path, defaultdict(str)
    assert lab._exports()["HOMELAB_LAB"] == str(tmp_path), "homelab init refuses to work there (homelab/cli/init.py)"


def test_the_environment_makes_pulumi_work_on_the_labs_stack(tmp_path: Path) -> None:
    """The function adds the file that no variable names, where the command takes one."""
    for name in ("pulumi", "a python"):
        (tmp_path / name).write_text('#!/bin/sh\nfor word; do printf "%s|" "$word"; done\n')
        (tmp_path / name).chmod(0o755)
    functions = deploy.functions(Path("/a b/Pulumi.lab.yaml"), Path("/"), tmp_path / "a python")
    text = f"PATH={tmp_path}:$PATH\n{functions}\npulumi up --yes; pulumi stack output result; homelab show --host pve; homelab --help"
    done = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=True)
    up, output = "up|--yes|--config-file|/a b/Pulumi.lab.yaml|--cwd|/|", "stack|output|result|--cwd|/|"
    show, help_ = "-m|homelab|show|--host|pve|--config-file|/a b/Pulumi.lab.yaml|", "-m|homelab|--help|"
    assert done.stdout == up + output + show + help_


# -- at a terminal ---------------------------------------------------------------------------------------------------------
def at_a_terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)


def shown_by(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_at_a_terminal_an_up_is_its_messages_and_a_line_of_what_is_under_way() -> None:
    console = at_a_terminal()
    assert progress.show(events.read(LOGS / "up.jsonl"), console) == events.read(LOGS / "up.jsonl")
    shown = shown_by(console)
    assert "pve: reboot: one, because" in shown and "pve: verified: kernel" in shown
    assert "registering resource" not in shown, "for whoever searches for a fault in the engine"


@pytest.mark.parametrize(
    ("logged", "said"),
    [
        ('{"diagnosticEvent": {"severity": "error", "message": "the host is gone"}}', "the host is gone\n"),
        ("", "no such stack\n"),
    ],
)
def test_what_an_up_failed_by_is_said_by_its_log_or_else_by_what_it_printed(
    tmp_path: Path, logged: str, said: str
) -> None:
    pulumi = tmp_path / "pulumi.py"
    pulumi.write_text(
        f"import sys\nopen(sys.argv[-1], 'w').write({logged!r} + chr(10))\nprint('no such stack')\nsys.exit(3)\n"
    )
    console = at_a_terminal()
    assert progress.run([sys.executable, str(pulumi)], {}, console) == 3
    assert shown_by(console).endswith(said)


def test_off_a_terminal_nothing_that_pulumi_says_is_left_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pulumi = tmp_path / "pulumi"
    pulumi.write_text('#!/bin/sh\necho "$@"\n')
    pulumi.chmod(0o755)
    lab = deploy.Deployment.__new__(deploy.Deployment)
    lab.environment, lab.config_file = {}, tmp_path / "Pulumi.lab.yaml"
    lab.engine = SimpleNamespace(pulumi=pulumi)  # type: ignore[assignment]
    assert lab.carry_out("up") == 0
    assert capfd.readouterr().out.startswith("up --yes --skip-preview --suppress-outputs --stack lab")
