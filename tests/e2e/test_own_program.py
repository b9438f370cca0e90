"""Projects of a person's own: one that the installed package makes by `homelab init` in an empty folder; and examples/own_program, homelab's components in
a program that describes host and VM itself, with no homelab: key in the configuration.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.conftest import PROJECT
from tests.e2e.conftest import Stack
from tests.e2e.test_gaming_vm import environment_with_homelab
from tests.e2e.test_gpu_vm import SANDBOX, given_back, with_card
from tests.workflow_steps import step_of

EXAMPLE = PROJECT / "examples" / "own_program"


def test_a_project_that_the_package_has_made_brings_a_card_into_a_vm_and_back(
    stack_on: Callable[..., Stack], tmp_path: Path
) -> None:
    stack = stack_on("bound-by-hand", vms=SANDBOX)
    stock = stack.lab.snapshot()
    folder, ssh = tmp_path / "project", stack.lab.connection
    folder.mkdir()
    where = [f"{ssh['host']}:{ssh['port']}", "--host-key", ssh["hostKey"], "--identity", ssh["privateKeyFile"]]
    init = [str(environment_with_homelab() / "bin" / "homelab"), "init", *where, "--card", "rtx5090=103", "--yes"]
    done = subprocess.run(
        [*init, "--stack", "lab"],
        cwd=folder,
        env=stack.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    made = yaml.safe_load((folder / "Pulumi.lab.yaml").read_text())["config"]
    assert made["homelab:vms"] == {"sandbox": {"host": "pve", "vmid": 103, "gpus": ["rtx5090"]}}
    stack.project = folder
    # For a pull request, by the step of the workflow for such a project, in what git has of it: without the host, though it is in reach.
    mark = stack.lab.mark()
    (folder / "Pulumi.lab.yaml").write_text(yaml.safe_dump({"config": stack.config}))
    (folder / ".venv").unlink()
    # What its first step installs is there: tests/unit/test_wheel.py.
    (tmp_path / "homelab").symlink_to(environment_with_homelab())
    environment = stack.environment | {"RUNNER_TEMP": str(tmp_path), "STACK": "lab", "PULUMI_BACKEND_URL": ""}
    step = ["bash", "-eo", "pipefail", "-c", step_of("preview.yml", "preview", "preview")[0]]
    subprocess.run(step, cwd=folder, env=environment, check=True)
    assert (folder / ".venv").readlink() == environment_with_homelab(), "the environment that it ran in"
    text = (folder / "preview.md").read_text()
    assert text.startswith("### Preview of stack lab\n") and "+ VM 103 (sandbox)" in text
    assert "pve-bind" in text and stack.lab.connections(since=mark) == []
    stack.up()
    assert with_card(stack) == {"0000:01:00.0": 103, "0000:01:00.1": 103}
    # By the program and the provider that the package has, and none of the repository's.
    assert not (folder / "homelab").exists() and "virtualenv: " in (folder / "Pulumi.yaml").read_text()
    stack.destroy_as_left()
    given_back(stack, stock)


def test_a_program_that_describes_its_host_brings_a_card_into_a_vm_and_back(
    stack_on: Callable[..., Stack], tmp_path: Path
) -> None:
    stack = stack_on("bound-by-hand", vms=SANDBOX)
    stock = stack.lab.snapshot()
    host = stack.host
    secret = Path(host["ssh"].pop("privateKeyFile")).read_text()
    del host["gpus"]
    project = tmp_path / "own program"
    shutil.copytree(EXAMPLE, project, ignore=shutil.ignore_patterns(".venv", "__pycache__"))
    (project / ".venv").symlink_to(environment_with_homelab())
    (tmp_path / "own").mkdir()
    config = {"own-program:host": host, "own-program:privateKey": secret}
    own = Stack(tmp_path / "own", stack.engine, config, project=project, lab=stack.lab)
    own.create()
    program = project / "__main__.py"
    text = program.read_text()
    program.write_text(text.replace('"match": "10de:2b85"', '"match": "10de:2b86"', 1))
    refused = own.preview(ok=False)
    assert "10de:2b86" in refused.message and "Traceback" not in refused.output, refused.output
    assert own.lab.snapshot() == stock
    program.write_text(text)
    assert "reboot: not needed" in own.up().output
    assert with_card(own) == {"0000:01:00.0": 103, "0000:01:00.1": 103}
    assert own.output()["sandbox"]["state"] == "running"
    state = "".join(path.read_text() for path in own.folder.glob(".pulumi/stacks/**/*.json"))
    assert '"urn:pulumi:lab::own-program' in state
    assert not [line for line in secret.splitlines() if line[8:] and line in state]
    own.destroy_as_left()
    given_back(own, stock)
