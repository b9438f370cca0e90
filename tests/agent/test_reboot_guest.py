"""When a system restarts (tools/restart.py): once what asks for it has ended, and whoever waits for its answer has it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from remote_scripts.tools import restart
from tests.agent.kit import Host, Refused
from tests.waiting import PATIENCE


def command(host: Host) -> list[str]:
    """The unit's command, as systemd-run is given it."""
    given: list[str] = []

    def run(words: Sequence[str], _stdin: bytes) -> int:
        given.extend(words)
        return 0

    host.programs["systemd-run"] = run
    assert host.ask("apply", "reboot_guest", {}) == {"changed": True}
    return given[given.index("sh") :]


@pytest.mark.parametrize("name", ["sshd", "sshd-session"])
def test_the_connection_that_has_the_answer_to_send_is_the_nearest_process_of_sshd(
    host: Host, tmp_path: Path, name: str
) -> None:
    """sshd-session: from OpenSSH 9.8 on."""
    shutil.copy(Path(shutil.which("dash") or "").resolve(), tmp_path / name)
    code = "from remote_scripts.tools import restart; print(restart.starters())"
    # A shell between them, which goes on after it: it isn't replaced by it.
    way = f"echo $$; sh -c '{sys.executable} -c \"{code}\"; exit $?'; exit $?"
    done = subprocess.run([tmp_path / name, "-c", way], capture_output=True, text=True, timeout=PATIENCE, check=True)
    by, above = done.stdout.splitlines()
    assert f"({by}, '{name}')" in above


def test_where_there_is_no_connection_it_is_a_second(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart, "starters", lambda: [(7, "sudo"), (5, "sshd-session"), (4, "sshd")])
    assert command(host)[-2:] == [str(os.getpid()), "5"]
    monkeypatch.setattr(restart, "starters", lambda: [(7, "login")])
    assert command(host)[-1] == "1"


def test_the_restart_begins_once_both_have_ended(host: Host, tmp_path: Path) -> None:
    *words, _, _ = command(host)
    for name, text in (
        ("timeout", 'shift; exec "$@"'),  # without an end of its own
        ("systemctl", f'[ -e {tmp_path}/1 ] && [ -e {tmp_path}/2 ] && echo "$@" >{tmp_path}/restarts'),
    ):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    waits = [
        subprocess.Popen(["sh", "-c", f"read -r _; touch {tmp_path}/{number}"], stdin=subprocess.PIPE)
        for number in (1, 2)
    ]
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    with subprocess.Popen([*words, *(str(one.pid) for one in waits)], env=environment):
        for one in waits:
            one.communicate(b"\n")
    assert (tmp_path / "restarts").read_text() == "reboot\n"


def test_a_system_that_goes_down_already_needs_no_second_restart(host: Host) -> None:
    """It takes no new unit. Asked for by a run that was killed, or by whoever restarts it."""
    host.programs["systemd-run"] = lambda *_: 1
    host.programs["systemctl"] = lambda *_: "stopping\n"
    assert host.ask("apply", "reboot_guest", {}) == {"changed": True}
    host.programs["systemctl"] = lambda *_: "running\n"
    with pytest.raises(Refused, match="wanted: a reboot of this system"):
        host.ask("apply", "reboot_guest", {})
