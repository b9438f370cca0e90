"""What Pulumi's own commands do to a settings file: values change, and every comment stays where it was."""

from __future__ import annotations

import difflib
import shutil
import subprocess
from pathlib import Path

import pytest

from engine import install
from tests import key_service
from tests.conftest import PROJECT
from tests.engine_stack import quick_environment
from tests.sampling import sample

FILES = [PROJECT / "Pulumi.homelab.yaml", *sorted(PROJECT.glob("examples/settings/*.yaml"))]
SECRET = "homelab:hosts.pve.api.tokenSecret"


@pytest.mark.parametrize("file", [FILES[0], *sample(FILES[1:], 3, "settings files")], ids=lambda file: file.name)
def test_stack_init_and_config_set_move_no_comment(engine: install.Engine, tmp_path: Path, file: Path) -> None:
    shutil.copy(PROJECT / "Pulumi.yaml", tmp_path)
    settings = tmp_path / "Pulumi.some.yaml"
    shutil.copy(file, settings)
    (tmp_path / "state").mkdir()
    environment = quick_environment(engine, tmp_path / "state")

    def pulumi(*arguments: str, given: str = "") -> None:
        command = [str(engine.pulumi), *arguments, "--stack", "some", "--non-interactive"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, input=given, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr

    # A passphrase costs a third of a second each time: one file has that, as most users have it.
    pulumi("stack", "init", "--secrets-provider", "default" if file is FILES[0] else key_service.URL)
    pulumi("config", "set", "--secret", "--path", SECRET, given="geheim")
    pulumi("config", "set", "homelab:plan", "never")
    now = settings.read_text().splitlines()
    # What is gone: lines whose value is another one now, and empty ones.
    differ = list(difflib.unified_diff(file.read_text().splitlines(), now, n=0, lineterm=""))[2:]
    gone = {line[1:].strip().partition("#")[0].strip() for line in differ if line.startswith("-")}
    assert gone <= {"", "tokenSecret: FILL-IN", "homelab:plan: auto"}
    comments = [line.split("# ", 1)[1] for line in file.read_text().splitlines() if "# " in line]
    assert [one for one in comments if not any(one in line for line in now)] == []
