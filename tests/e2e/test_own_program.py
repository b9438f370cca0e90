"""examples/own_program: homelab's components in a program that describes host and VM itself, with no homelab: key in the configuration."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from tests.conftest import PROJECT
from tests.e2e.conftest import Stack
from tests.e2e.test_gaming_vm import environment_with_homelab
from tests.e2e.test_gpu_vm import given_back, with_card

EXAMPLE = PROJECT / "examples" / "own_program"


def test_a_program_that_describes_its_host_gives_a_vm_a_card_and_takes_it_back(
    stack_on: Callable[..., Stack], tmp_path: Path
) -> None:
    on_lab = stack_on("rtx5090", vms={})
    stock = on_lab.lab.snapshot()
    host = on_lab.host
    secret = Path(host["ssh"].pop("privateKeyFile")).read_text()
    del host["gpus"]
    project = tmp_path / "own program"
    shutil.copytree(EXAMPLE, project, ignore=shutil.ignore_patterns(".venv", "__pycache__"))
    (project / ".venv").symlink_to(environment_with_homelab())
    (tmp_path / "own").mkdir()
    config = {"own-program:host": host, "own-program:privateKey": secret}
    own = Stack(tmp_path / "own", on_lab.engine, config, project=project, lab=on_lab.lab)
    own.create()
    preview, program = own.preview(), project / "__main__.py"
    assert "0000:01:00.0 [10de:2b85] nouveau -> vfio-pci" in preview.output and "reboot: one, because" in preview.output
    text = program.read_text()
    program.write_text(text.replace('"match": "10de:2b85"', '"match": "10de:2b86"', 1))
    refused = own.preview(ok=False)
    assert "10de:2b86" in refused.message and "Traceback" not in refused.output, refused.output
    assert own.lab.snapshot() == stock
    program.write_text(text)
    own.up()
    assert with_card(own) == {"0000:01:00.0": 103, "0000:01:00.1": 103}
    assert own.output()["sandbox"]["state"] == "running"
    state = "".join(path.read_text() for path in own.folder.glob(".pulumi/stacks/**/*.json"))
    assert '"urn:pulumi:lab::own-program' in state
    assert not [line for line in secret.splitlines() if line[8:] and line in state]
    assert own.up("--refresh").changed == set()
    own.destroy()
    given_back(own, stock)
