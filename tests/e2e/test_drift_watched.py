"""The workflow that watches for drift: its own bash, the real `homelab drift`, a host on which something changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.conftest import PROJECT
from tests.e2e.conftest import Stack
from tests.e2e.person import PROGRAM
from tests.workflow_steps import Steps


def test_drift_opens_an_issue_that_says_it_and_is_closed_when_it_is_gone(
    converged: Callable[..., Stack], tmp_path: Path
) -> None:
    stack = converged("rtx5090")
    for name in (*PROGRAM, "engine"):
        (tmp_path / name).symlink_to(PROJECT / name)
    (tmp_path / "Pulumi.lab.yaml").write_text((stack.folder / "Pulumi.lab.yaml").read_text())
    steps = Steps(tmp_path)
    steps.program("make", "#!/bin/bash\n")
    environment = {name: value for name, value in stack.environment.items() if name != "PATH"}
    environment |= {"STACK": "lab", "PULUMI_ACCESS_TOKEN": "", "HOMELAB_HOOK": ""}
    # What the runner has for a secret that isn't set is an empty variable.

    def look() -> str:
        (tmp_path / "output").unlink(missing_ok=True)
        done = steps.run("drift.yml", "look", "look", **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        status = (tmp_path / "output").read_text().strip().removeprefix("status=")
        (tmp_path / "told").mkdir(exist_ok=True)
        (tmp_path / "told/drift.md").write_text((tmp_path / "drift.md").read_text())
        told = steps.run("drift.yml", "tell", "open, update or close it", STATUS=status)
        assert told.returncode == 0, told.stdout + told.stderr
        return status

    # (Where there is none and never was, nothing is opened: tests/scripts/test_workflow_steps.py.)
    script, aside = '"$ROOT/etc/initramfs-tools/scripts/init-top/homelab-vfio"', '"$ROOT/tmp/aside"'
    stack.lab.run(f"mv {script} {aside}; update-initramfs -u -k all")
    assert look() == "1"
    assert "init-top/homelab-vfio is gone" in steps.known[0]["body"] and steps.known[0]["title"] == "A host has drifted"
    stack.lab.run(f"mv {aside} {script}; update-initramfs -u -k all")
    assert look() == "0" and steps.known[0]["state"] == "closed"
    # (A host that can't be read: tests/e2e/test_drift.py, and what the issue is called then: tests/scripts/test_workflow_steps.py.)
