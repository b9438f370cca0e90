"""A lab's daemon remembers each machine.json, and never takes an older one for the newer."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.host.state import HostState


@pytest.fixture(autouse=True)
def in_a_daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    remembered: dict[str, Any] = {}
    monkeypatch.setattr(HostState, "remembers", True)
    monkeypatch.setattr(HostState, "_remembered", remembered)
    yield
    for seen in remembered.values():
        seen.file.close()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "machine.json").write_text(json.dumps({"node": "pve", "faults": {}, "guests": {}}))
    return tmp_path


def test_each_change_is_seen_though_nothing_but_the_content_tells_the_files_apart(state: Path) -> None:
    for number in range(100, 400):
        with HostState(state).changing() as machine:
            machine["node"] = f"pve{number}"
        os.utime(state / "machine.json", ns=(0, 0))  # a clock that stands, as it does between two ticks
        assert (HostState(state).node, HostState(state).machine["node"]) == (f"pve{number}", f"pve{number}")


def test_what_one_changes_and_does_not_save_nobody_else_has(state: Path) -> None:
    host = HostState(state)
    host.machine["node"] = "other"
    assert (host.node, HostState(state).node, HostState(state).machine["node"]) == ("other", "pve", "pve")


def test_a_file_is_read_once(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert HostState(state).node == "pve"
    monkeypatch.setattr(json, "loads", None)
    assert HostState(state).fault("api-seconds") is None
    assert HostState(state).machine["node"] == "pve"


def test_of_hundreds_of_hosts_few_files_are_kept_open(tmp_path: Path) -> None:
    for number in range(300):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        (folder / "machine.json").write_text(json.dumps({"node": f"pve{number}"}))
        assert HostState(folder).node == f"pve{number}"
    assert len(HostState._remembered) < 50
    open_files = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert len([path for path in open_files if path.startswith(str(tmp_path))]) < 50
    assert [HostState(tmp_path / f"{number}").node for number in (0, 299)] == ["pve0", "pve299"]
