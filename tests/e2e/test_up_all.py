"""`homelab up --all` with the real engine, on two hosts: side by side, interrupted, refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine import install, stacks
from lab import Lab
from tests import key_service, quick_python
from tests.conftest import PROJECT
from tests.e2e.conftest import Labs, gpus_of, host_settings
from tests.e2e.person import PROGRAM
from tests.engine_stack import WITHOUT_HURRY, quick_environment
from tests.waiting import PATIENCE

LEFT, RIGHT = "rtx5090", "intel-zfs"


@dataclass
class Desk:
    """A project with several stacks, and their hosts."""

    folder: Path
    engine: install.Engine
    left: Lab
    right: Lab
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def stack(self, name: str, lab: Lab, gpus: dict[str, Any]) -> None:
        config = {"homelab:hosts": {"pve": host_settings(lab) | {"gpus": gpus}}}
        (self.folder / f"Pulumi.{name}.yaml").write_text(yaml.safe_dump({**key_service.IN_SETTINGS, "config": config}))
        stacks.create(self.engine.pulumi, name, self.environment, secrets_provider=key_service.URL)

    @property
    def environment(self) -> dict[str, str]:
        return quick_environment(self.engine, self.folder / "state") | {"TMPDIR": str(self.folder / "tmp")}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Of a run that is going to be interrupted, in a process group of its own, as a shell starts it: a signal reaches each process by itself."""
        without = {*WITHOUT_HURRY, quick_python.SERVER}
        environment = {name: value for name, value in self.environment.items() if name not in without}
        self.running.append(
            subprocess.Popen(
                [sys.executable, "-m", "homelab", *arguments],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        return self.running[-1]

    def run(self, *arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "homelab", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        return done.returncode, done.stdout + done.stderr

    @property
    def locks(self) -> list[Path]:
        return [*(self.folder / "state" / ".pulumi" / "locks").rglob("*.json")]


@pytest.fixture
def desk(tmp_path: Path, engine: install.Engine, labs: Labs) -> Iterator[Desk]:
    for name in PROGRAM:
        (tmp_path / name).symlink_to(PROJECT / name)
    for name in ("state", "tmp"):
        (tmp_path / name).mkdir()
    taken = {
        name: labs.take(name, lambda folder, name=name: Lab.start(name, state=folder / "lab"))[1]  # type: ignore[misc]
        for name in (LEFT, RIGHT)
    }
    found = Desk(tmp_path, engine, taken[LEFT], taken[RIGHT])
    for name, lab in (("left", found.left), ("right", found.right)):
        found.stack(name, lab, gpus_of(LEFT if name == "left" else RIGHT))
    yield found
    for process in found.running:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGINT)
        process.communicate()
    for lab in taken.values():
        lab.fault("script-hangs", None)


def test_two_hosts_at_once_interrupted_each_stack_goes_on_and_a_refused_one_of_the_same_host_waits_and_is_left_out(
    desk: Desk,
) -> None:
    for lab in (desk.left, desk.right):
        lab.fault("script-hangs", "NAME=iommu")
    process = desk.start("up", "--all", "--yes", "--skip-preview")
    # Each hangs until its connection ends: that both are there shows that they run at the same time.
    for lab in (desk.left, desk.right):
        lab.wait_command("NAME=iommu", timeout=PATIENCE)
    assert len(desk.locks) == 2
    # As the terminal does it: the whole group gets it.
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout is not None
    while "right: ends after what is under way" not in process.stdout.readline():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    shown, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, shown
    assert desk.locks == [] and "left: done: " in shown and "right: done: " in shown, shown
    for lab in (desk.left, desk.right):
        lab.fault("script-hangs", None)
        lab.wait_idle()

    # Once: what is under way comes to its end.
    process = desk.start("up", "--all", "--yes", "--skip-preview")
    desk.left.wait_command("POLICY=auto", timeout=PATIENCE)
    os.killpg(process.pid, signal.SIGINT)
    shown, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and desk.locks == [], shown
    assert "left: done: pve-probe" in shown, shown
    for lab in (desk.left, desk.right):
        lab.wait_idle()

    # By its name it comes last; it has the left one's host, and cards that this hasn't got.
    desk.stack("wrong", desk.left, {"none": {"match": "10de:9999"}})
    status, shown = desk.run("up", "--all", "--yes")
    assert status == 1, shown
    assert "left, then wrong; one after the other" in shown
    lines = shown.splitlines()
    assert lines.index("wrong: preview begins") > max(
        number for number, line in enumerate(lines) if line.startswith("left: ") and "to create" in line
    )
    assert "wrong: refused: gpus.none: a card (10de:9999)" in lines and "wrong is left out" in shown
    assert [len(lab.boots()) for lab in (desk.left, desk.right)] == [2, 2]
    assert desk.locks == []
