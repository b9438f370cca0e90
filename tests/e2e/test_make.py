"""The README's commands, as a new user types them: what `make up` and `make down` do, and a `make up` after a killed one.

That is killed at a moment that the seed says (tests/sampling.py).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab import Lab
from lab.engine import install
from tests.conftest import PROJECT
from tests.e2e import terminal
from tests.engine_stack import kill_tree, quick_start
from tests.sampling import sample
from tests.waiting import PATIENCE


def deploy(verb: str, folder: Path, engine: install.Engine) -> subprocess.CompletedProcess[str]:
    """`make up SCENARIO=rtx5090` with the lab's state in ``folder``, so that a user's own lab is left in peace."""
    return subprocess.run(
        [sys.executable, "-m", "lab.deploy", verb, "rtx5090", "--state", str(folder)],
        cwd=PROJECT, env=os.environ | quick_start(engine),
        capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL,
    )  # fmt: skip


# Steps in which the first one is killed: before the boot is configured, and after the reboot.
KILLED_IN = ('"layer": "initramfs"', '"guests": false')


@pytest.mark.parametrize("script", sample(KILLED_IN, 1, "make up"))
def test_the_preview_of_a_pull_request_and_up_which_goes_on_after_one_that_was_killed_and_outputs_and_down(
    tmp_path: Path, engine: install.Engine, script: str
) -> None:
    assert engine.pulumi.exists()
    # The preview for a pull request fails where `up` will refuse, and needs neither host nor key.
    # What make sees to first isn't among what a program reads: `make outputs` prints JSON.
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    ready = subprocess.run(["make", ".ready"], cwd=PROJECT, env=outside, capture_output=True, text=True)
    assert (ready.returncode, ready.stdout) == (0, ""), ready.stderr
    without = {name: value for name, value in os.environ.items() if not name.startswith("PULUMI_")}
    done = subprocess.run(
        ["make", "pull-request-preview", f"OUTPUT={tmp_path / 'preview.md'}"],
        cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL,
        env=without | {"PULUMI_ACCESS_TOKEN": "", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode != 0 and "pve-bind" in done.stdout, done.stdout + done.stderr
    text = (tmp_path / "preview.md").read_text()
    assert text.startswith("### Preview of stack homelab: refused") and "without the key" not in text

    state = tmp_path / "rtx5090"
    try:
        command = [sys.executable, "-m", "lab.deploy", "up", "rtx5090", "--state", str(state)]
        environment = os.environ | quick_start(engine) | {"TERM": "xterm-256color"}
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                command, cwd=PROJECT, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )  # fmt: skip
            Lab.start("rtx5090", state=state).wait_command(script, timeout=PATIENCE)
            kill_tree(process.pid)
            assert process.wait() == -signal.SIGKILL
        shown = terminal.Terminal(command, 100, environment, PROJECT)
        shown.answer()
        lines = shown.lines()
        # The plan, each message once (also what the engine says of the killed one), the result, and what next; no row for each resource.
        plan, result, hints = (lines.index(line) for line in ("Plan", "Result", "Your own host: README.md#use-it"))
        assert any("+ VM 103 (Sandbox)" in line for line in lines[plan:result]), lines
        assert result - plan < 40 and "Diagnostics:" not in lines and not terminal.rows(lines), lines
        assert sum("pve: verified: kernel" in line for line in lines) == 1, lines
        assert any("→ VM 103 (Sandbox)" in line for line in lines[result:hints]), lines
        assert '"driver": "vfio-pci"' in deploy("outputs", state, engine).stdout
        lab = Lab.open(state)
        assert lab.running
        assert [boot["reason"] for boot in lab.boots()] == ["start", "reboot"]  # it has run all the time
        down = deploy("down", state, engine)
        assert down.returncode == 0, down.stdout + down.stderr
        assert "Destroying (lab):" in down.stdout, "off a terminal all that Pulumi says is there"
        assert not lab.running
        assert not [path for path in lab.snapshot() if "homelab" in path]
        assert deploy("down", state, engine).returncode == 0
    finally:
        Lab.open(state).stop()
