"""A lab's daemon: a session of its own, and a command server that is its child."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from lab import Lab
from tests.simulator.test_server_power import daemon_pid
from tests.waiting import wait_until


def test_it_has_session_folder_and_output_of_its_own(tmp_path: Path) -> None:
    with Lab.start("rtx5090", state=tmp_path / "lab") as lab:
        process = Path("/proc", str(daemon_pid(lab)))
        assert os.getsid(int(process.name)) not in (os.getsid(0), int(process.name))
        assert (process / "cwd").readlink() == Path("/")
        log = lab.state / "log" / "daemon.log"
        assert [(process / "fd" / str(stream)).readlink() for stream in (1, 2)] == [log, log]


def test_its_command_server_is_its_child_found_by_its_lab_and_ends_with_it(tmp_path: Path) -> None:
    with Lab.start("rtx5090", state=tmp_path / "lab") as lab:
        daemon = daemon_pid(lab)
        [server] = Path(f"/proc/{daemon}/task/{daemon}/children").read_text().split()
        process = Path("/proc", server)
        assert (process / "environ").read_bytes().split(b"\0")[:2] == [
            b"LC_ALL=C.UTF-8",
            f"LAB_STATE={lab.state}".encode(),
        ]
        assert (process / "cwd").readlink() == Path("/")
        assert os.getsid(int(server)) == int(server)
        done = lab.run("mknod $HOMELAB_ROOT/dev/one c 9 9 && qm list && echo done")
        assert (done.stderr, done.stdout.splitlines()[-1:]) == ("", ["done"])
        os.kill(daemon, signal.SIGKILL)
        wait_until(lambda: not process.exists())
