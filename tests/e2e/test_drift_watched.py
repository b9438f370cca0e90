"""The workflow that watches for drift: its own bash, the real engine, a host on which something changes, and then is off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.conftest import PROJECT
from tests.e2e.conftest import Stack, out_of_reach
from tests.e2e.person import PROGRAM
from tests.workflow_steps import Steps


def test_exit_status_7_says_drift_0_none_and_any_other_that_it_is_not_known(
    converged: Callable[..., Stack], tmp_path: Path
) -> None:
    stack = converged("rtx5090")
    for name in PROGRAM:
        (tmp_path / name).symlink_to(PROJECT / name)
    (tmp_path / "Pulumi.lab.yaml").write_text((stack.folder / "Pulumi.lab.yaml").read_text())
    steps = Steps(tmp_path)
    # What the runner has for a secret that isn't set is an empty variable.
    environment = stack.environment | {"PULUMI_STACK": "lab", "PULUMI_ACCESS_TOKEN": ""}

    def look() -> tuple[int, str]:
        done = steps.run("drift.yml", "look", "look", **environment)
        return done.returncode, done.stdout + done.stderr

    script, aside = '"$ROOT/etc/initramfs-tools/scripts/init-top/homelab-vfio"', '"$ROOT/tmp/aside"'
    stack.lab.run(f"mv {script} {aside}; update-initramfs -u -k all")
    status, output = look()
    assert status == 7 and "init-top/homelab-vfio is gone" in output and "::error title=Drift::" in output, output
    stack.lab.run(f"mv {aside} {script}; update-initramfs -u -k all")
    assert look()[0] == 0
    out_of_reach(stack.lab)
    status, output = look()
    assert status not in (0, 7) and "to read pve" in output and "::error title=Not known::" in output, output
