"""When a system restarts (tools/restart.py): once what asks for it has ended, and whoever waits for its answer has it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from remote_scripts.tools.done import Done
from tests.agent.kit import Host, Refused, command


def of_unit(host: Host) -> list[str]:
    """The unit's command, as systemd-run is given it."""
    given: list[str] = []

    def run(words: Sequence[str], _stdin: bytes) -> int:
        given.extend(words)
        return 0

    host.programs["systemd-run"] = run
    assert host.ask("apply", "reboot_guest", {}) == {"changed": True}
    return given[given.index("sh") :]


def test_the_restart_begins_a_second_after_whoever_has_the_answer_has_ended(host: Host, tmp_path: Path) -> None:
    *words, pid = of_unit(host)
    assert pid == str(os.getpid())
    for name, text in (
        ("timeout", 'shift; exec "$@"'),  # without an end of its own
        ("sleep", f'[ -e {tmp_path}/answered ] && echo "$@" >{tmp_path}/waited'),
        ("systemctl", f'[ -e {tmp_path}/waited ] && echo "$@" >{tmp_path}/restarts'),
    ):
        command(host, name, text)
    answers = subprocess.Popen(["sh", "-c", f"read -r _; touch {tmp_path}/answered"], stdin=subprocess.PIPE)
    environment = {**os.environ, "PATH": f"{tmp_path}/commands:{os.environ['PATH']}"}
    with subprocess.Popen([*words, str(answers.pid)], env=environment):
        answers.communicate(b"\n")
    assert (tmp_path / "waited").read_text() == "1\n"
    assert (tmp_path / "restarts").read_text() == "reboot\n"


def test_a_system_that_goes_down_already_needs_no_second_restart(host: Host) -> None:
    """It takes no new unit. Asked for by a run that was killed, or by whoever restarts it."""
    host.programs["systemd-run"] = lambda *_: 1
    host.programs["systemctl"] = lambda *_: Done(1, b"stopping\n")
    assert host.ask("apply", "reboot_guest", {}) == {"changed": True}
    host.programs["systemctl"] = lambda *_: "running\n"
    with pytest.raises(Refused, match="wanted: a reboot of this system"):
        host.ask("apply", "reboot_guest", {})
