"""Simulated commands as forks of a command server: whoever starts one, and kills it, can't tell it from a process of its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.commands import CommandServer
from lab.host.contents import install_program
from lab.host.state import COMMANDS, HostState
from lab.state import process_start_time
from tests.lab.host_kit import Host
from tests.waiting import PATIENCE, wait_until

HOOK = "/etc/initramfs-tools/hooks/aaa-test"
RUN = "update-initramfs -u -k all"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return Host(tmp_path_factory.mktemp("host") / "lab", "rtx5090", running=True)


@pytest.fixture(autouse=True)
def hook(host: Host) -> Iterator[None]:
    """What a simulated command starts says, of the command: how it is called, its streams, umask and signals."""
    yield
    (host.root / HOOK.lstrip("/")).unlink(missing_ok=True)


def say(host: Host, text: str) -> None:
    host.write(
        HOOK, f'#!/bin/bash\n[ "$1" != prereqs ] || exit 0\ncommand=$PPID said={host.root}/said\n{text}\n', 0o755
    )


def said(host: Host, command: str = RUN) -> str:
    host.output(command)
    return (host.root / "said").read_text()


def begun(host: Host, command: str) -> subprocess.Popen[bytes]:
    """A command that has come as far as its hook; that has said its own pid and the command's, and hangs."""
    (host.root / "said").unlink(missing_ok=True)
    say(host, "echo $$ $command >$said.new; mv $said.new $said; exec sleep 300")
    process = subprocess.Popen(["bash", "-c", command], env=host.machine.environment(), stdout=subprocess.DEVNULL)
    wait_until((host.root / "said").exists)
    return process


def gone(host: Host) -> bool:
    return all(process_start_time(int(pid)) is None for pid in (host.root / "said").read_text().split())


def test_a_command_is_a_fork_of_the_server_and_a_process_of_its_own_without_one(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(host, "cat /proc/$command/comm >$said")
    assert said(host).startswith("lab/")
    monkeypatch.setitem(os.environ, COMMANDS, "46:nobody-listens")
    assert said(host).startswith("python")
    monkeypatch.delitem(os.environ, COMMANDS)
    assert said(host).startswith("python")


def test_a_program_has_the_path_that_it_was_started_by_with_a_server_and_without_one(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = "/usr/local/cuda-12.8/bin/nvcc"
    install_program(HostState(host.machine.state), nvcc)
    assert "release 12.8," in host.output(f"$HOMELAB_ROOT{nvcc} --version")
    monkeypatch.delitem(os.environ, COMMANDS)
    assert "release 12.8," in host.output(f"$HOMELAB_ROOT{nvcc} --version")


def test_in_another_mount_namespace_a_command_is_a_process_of_that(host: Host) -> None:
    unshare = shutil.which("unshare")  # the lab's own has no namespace
    if unshare is None or subprocess.run([unshare, "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine gives a user no mount namespace")
    say(host, "cat /proc/$command/comm >$said")
    assert said(host, f"{unshare} --mount {RUN}").startswith("python")


def test_it_has_the_callers_folder_umask_ignored_signals_and_arguments(host: Host) -> None:
    say(host, "umask >$said; grep SigIgn /proc/$command/status >>$said")
    umask, ignored = said(host, f"trap '' TERM HUP; umask 027; {RUN}").splitlines()
    assert umask == "0027" and int(ignored.split()[1], 16) >> signal.SIGTERM - 1 & 1
    (host.root / "root/a b").write_text("x")
    assert host.output("sha256sum 'a b'").split(maxsplit=1)[1] == "a b\n"
    assert "no such\n$name" in host.run("sha256sum 'no such\n$name'").stderr


def test_its_streams_are_the_callers_own(host: Host) -> None:
    assert host.output("{ echo one; uname -a; echo three; } >$HOMELAB_ROOT/out; cat $HOMELAB_ROOT/out").count("\n") == 3
    assert host.output("exec 3>&1; { qm status 9999; } 2>&1 >&3 | wc -l") == "1\n"
    assert host.run("uname -a <&-; uname -a >&-").returncode != 0, "a closed stream is no reason not to start"
    assert host.output("journalctl -k | head -1; echo ${PIPESTATUS[0]}").splitlines()[-1] in ("0", "141")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_command_that_is_killed_ends_with_what_it_has_started(host: Host, number: signal.Signals) -> None:
    process = begun(host, f"exec {RUN}")
    process.send_signal(number)
    assert process.wait(PATIENCE) == -number
    wait_until(lambda: gone(host))


def test_timeout_ends_a_command_that_hangs(host: Host) -> None:
    process = begun(host, f"timeout -s KILL 1 {RUN}")
    assert process.wait(PATIENCE) == -signal.SIGKILL
    wait_until(lambda: gone(host))


def test_a_killed_process_group_takes_its_commands_along(host: Host) -> None:
    process = begun(
        host, f"set -m; {RUN} & until [[ -e $HOMELAB_ROOT/said ]]; do sleep 0.02; done; kill -KILL -$!; wait"
    )
    process.wait(PATIENCE)
    wait_until(lambda: gone(host))


def test_a_command_ends_with_the_server_and_the_server_with_its_owner(tmp_path: Path) -> None:
    before = os.environ[COMMANDS]
    try:
        with CommandServer() as server:
            own = Host(tmp_path / "lab", "rtx5090", running=True)
            process = begun(own, f"exec {RUN}")
            assert server.pid is not None
            os.kill(server.pid, signal.SIGTERM)
            assert process.wait(PATIENCE) == 137
            wait_until(lambda: gone(own))
    finally:
        os.environ[COMMANDS] = before


def test_a_command_that_waits_keeps_no_other_one_waiting(host: Host) -> None:
    with (host.machine.state / ".pve.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(["bash", "-c", "exec qm list"], env=host.machine.environment())
        wait_until(lambda: f"lab/{process.pid}\n" in [read(comm) for comm in Path("/proc").glob("[0-9]*/comm")])
        assert host.output("uname -s") == "Linux\n"
    assert process.wait(PATIENCE) == 0


def read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def asked(answer: bytes, number: signal.Signals) -> int:
    """How a client ends that is told this after a signal, which it passes on."""
    if (perl := shutil.which("perl")) is None:
        pytest.skip("there is no perl here: no command is asked of a server")
    name = f"homelab-test-{os.getpid()}"
    client = Path(__file__).parents[2] / "lab/host/command.pl"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"\0{name} {Path('/proc/self/ns/mnt').readlink()}")
        listener.listen(1)
        environment = {COMMANDS: f"{os.environ[COMMANDS].partition(':')[0]}:{name}"}
        launcher = f"@own = qw(/bin/false -I -S run.py uname); do '{client}'"
        process = subprocess.Popen([perl, "-e", launcher], env=environment)
        connection, _ = listener.accept()
        with connection:
            _, streams, _, _ = socket.recv_fds(connection, 16, 3)
            for stream in streams:
                os.close(stream)
            wait_until(lambda: bool(int(status_of(process.pid, "SigCgt"), 16) >> number - 1 & 1))
            process.send_signal(number)
            assert connection.recv(1) == bytes([number])
            connection.sendall(answer)
        return process.wait(PATIENCE)


def status_of(process: int, name: str) -> str:
    return read(Path(f"/proc/{process}/status")).split(f"{name}:")[1].split()[0]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM])
def test_a_signal_is_the_commands_and_its_end_the_clients(number: signal.Signals) -> None:
    assert asked(struct.pack("I", 3 << 8), number) == 3
    assert asked(struct.pack("I", number), number) == -number
    assert asked(b"", number) == 137, "the server was killed"
