"""Simulated commands as forks of a command server: whoever starts one, and kills it, can't tell it from a process of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
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
    assert "release 12.8," in host.output(f"$ROOT{nvcc} --version")
    monkeypatch.delitem(os.environ, COMMANDS)
    assert "release 12.8," in host.output(f"$ROOT{nvcc} --version")


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
    assert host.output("{ echo one; uname -a; echo three; } >$ROOT/out; cat $ROOT/out").count("\n") == 3
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
    process = begun(host, f"set -m; {RUN} & until [[ -e $ROOT/said ]]; do sleep 0.02; done; kill -KILL -$!; wait")
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


@pytest.fixture
def server() -> Iterator[CommandServer]:
    """One that has done nothing yet."""
    before = os.environ[COMMANDS]
    with CommandServer() as own:
        yield own
    os.environ[COMMANDS] = before


def forks(server: CommandServer) -> list[str]:
    return read(Path(f"/proc/{server.pid}/task/{server.pid}/children")).split()


CHANGES = "mknod $ROOT/dev/{0} c 9 9"


def test_a_fork_that_has_done_its_command_takes_the_next_and_keeps_nothing_of_it(
    host: Host, server: CommandServer
) -> None:
    host.output(
        f"cd $ROOT/etc; trap '' TERM HUP INT; umask 077; {CHANGES.format('one')}; apt-get -s install nothing || true"
    )
    (fork,) = forks(server)
    at = Path("/proc", fork)
    wait_until(lambda: read(at / "comm") == "lab\n")
    assert (at / "cwd").readlink() == Path("/")
    assert {str(one.readlink()).partition(":")[0] for one in (at / "fd").iterdir()} == {"/dev/null", "socket"}
    assert int(read(at / "status").split("SigIgn:")[1].split()[0], 16) & (1 << signal.SIGTERM - 1 | 1) == 0
    host.output(f"cd $ROOT/dev; {CHANGES.format('two')}; mknod three c 9 9; rm one two three")
    assert forks(server) == [fork]


def test_two_commands_at_once_have_a_fork_each(host: Host, server: CommandServer) -> None:
    with (host.machine.state / ".pve.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(["bash", "-c", "exec qm list"], env=host.machine.environment())
        wait_until(lambda: bool(forks(server)))
        host.output(f"{CHANGES.format('one')}; rm $ROOT/dev/one")
        assert len(forks(server)) == 2
    assert process.wait(PATIENCE) == 0


def test_a_fork_whose_command_has_left_a_process_or_was_killed_takes_no_other(
    host: Host, server: CommandServer
) -> None:
    say(host, "true")
    host.output(RUN)
    (fork,) = forks(server)
    host.output(RUN)
    assert forks(server) == [fork], "what it has started has ended"
    say(host, "sleep 300 >/dev/null 2>&1 & echo $! >$said")
    left = said(host).strip()
    wait_until(lambda: forks(server) == [])
    os.kill(int(left), signal.SIGKILL)
    process = begun(host, f"exec {RUN}")
    (fork,) = forks(server)
    process.kill()
    assert process.wait(PATIENCE) == -signal.SIGKILL
    wait_until(lambda: fork not in forks(server))
    host.output(f"{CHANGES.format('one')}; rm $ROOT/dev/one")
    assert fork not in forks(server)


def test_what_a_reader_left_is_not_said_to_the_next(host: Host) -> None:
    host.run("apt-get -s install nothing 2>&1 | true; exec 3>&1; { dpkg --configure -a; } >/dev/full")
    assert host.output("apt-mark showhold; sha256sum /etc/hostname").count("\n") == 1


def test_a_fork_that_is_killed_while_it_waits_is_replaced(host: Host, server: CommandServer) -> None:
    for _ in range(2):
        host.output(f"{CHANGES.format('one')}; rm $ROOT/dev/one")
        wait_until(lambda: len(forks(server)) == 1)  # the killed one may still be about to end
        os.kill(int(*forks(server)), signal.SIGKILL)
    host.output(f"{CHANGES.format('one')}; rm $ROOT/dev/one")


def test_a_command_that_a_dying_fork_was_given_is_done_by_another(host: Host, server: CommandServer) -> None:
    host.output(f"{CHANGES.format('one')}; rm $ROOT/dev/one")
    (fork,) = forks(server)
    os.kill(int(fork), signal.SIGSTOP)  # it is given the command, and dies before it takes it
    command = ["bash", "-c", f"{CHANGES.format('one')}; cat; rm $ROOT/dev/one"]
    client = subprocess.Popen(command, env=host.machine.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    wait_until(lambda: passes_signals_on(client.pid))
    wait_until(lambda: "State:\tS" in read(Path(f"/proc/{server.pid}/status")))
    os.kill(int(fork), signal.SIGKILL)
    assert client.communicate(b"its own input", timeout=PATIENCE)[0] == b"its own input"
    assert client.returncode == 0


def test_a_fork_that_fails_before_it_takes_a_command_is_its_end(host: Host, server: CommandServer) -> None:
    assert server.pid is not None
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (64, 64))  # too few for what a fork begins with
    command = ["bash", "-c", CHANGES.format("one")]
    client = subprocess.Popen(command, env=host.machine.environment(), stderr=subprocess.DEVNULL)
    try:
        assert client.wait(PATIENCE) == 1
    finally:
        client.kill()


def passes_signals_on(shell: int) -> bool:
    """Whether a shell's command was told that a fork does it (command_begun.pl): it catches SIGTERM from then on."""
    children = read(Path(f"/proc/{shell}/task/{shell}/children")).split()
    caught = [re.search(r"^SigCgt:\t(\w+)$", read(Path(f"/proc/{child}/status")), re.M) for child in children]
    return any(int(mask[1], 16) >> (signal.SIGTERM - 1) & 1 for mask in caught if mask)


def test_forks_end_with_the_server(host: Host, server: CommandServer) -> None:
    host.output(f"{CHANGES.format('one')}; rm $ROOT/dev/one")
    (fork,) = forks(server)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: process_start_time(int(fork)) is None)


# Commands that only look, which the server does itself.
LOOKS = r"""
uname -a
stat -c '%F %t:%T %a' $ROOT/dev/kvm $ROOT/dev/nothing
stat -L -c %s /etc/passwd /dev/kvm
cd $ROOT/dev; stat -c %t kvm
dd if=/etc/passwd of=$ROOT/dev/copy count=1 status=none; cat $ROOT/dev/copy
dd if=$ROOT/dev/nothing of=$ROOT/dev/copy
dpkg-query -W -f '${Package} ${Version}\n' 'pve-*' nothing
dpkg -s nothing
modinfo -F filename vfio-pci
lspci -nn
lsblk -nro NAME
df -P -B1 /boot
systemctl is-active pveproxy nothing
pveversion
lspci --frobnicate
echo "<4>from a test" >$ROOT/dev/kmsg; dmesg | tail -n 1 | sed 's/.*]//'
stat -c %t /proc/self/fd/0 </dev/null
LAB_STATE= uname
qm list
qm config 101
qm status 9999
pct list
qm frobnicate
"""


def results(host: Host) -> list[tuple[str, int, str, str]]:
    done = [(line, host.run(line)) for line in LOOKS.strip().splitlines()]
    return [(line, one.returncode, one.stdout, one.stderr) for line, one in done]


def test_a_command_says_the_same_whether_the_server_does_it_itself_or_a_process_of_its_own(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_server = results(host)
    monkeypatch.setitem(os.environ, COMMANDS, "46:nobody-listens")
    assert by_server == results(host)


def test_a_look_that_would_have_to_wait_waits_in_a_process_of_its_own(host: Host) -> None:
    wanted = host.output("qm list")
    with (host.machine.state / ".pve.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        words = ["bash", "-c", "exec qm list"]
        process = subprocess.Popen(words, env=host.machine.environment(), stdout=subprocess.PIPE, text=True)
        wait_until(lambda: f"lab/{process.pid}\n" in [read(comm) for comm in Path("/proc").glob("[0-9]*/comm")])
        assert host.output("uname -s") == "Linux\n", "others don't wait for it"
    assert process.communicate(timeout=PATIENCE)[0] == wanted


def read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


WATCHED = """
import fcntl, importlib.util, os, signal, socket, subprocess, sys
sys.path.append(sys.argv[1])
spec = importlib.util.spec_from_file_location("command_server", sys.argv[1] + "/host/command_server.py")
server = importlib.util.module_from_spec(spec)
spec.loader.exec_module(server)
looking = server.Looking()
from host import program
folder, file = sys.argv[2], sys.argv[2] + "/file"
with open(file) as reading:
    program.looks_only = True
    reading.read(), open(file).close(), os.listdir(folder), os.stat(file)
    for does in (
        lambda: open(file, "w"), lambda: open(file, "a"), lambda: os.open(file, os.O_RDWR), lambda: os.mkdir(folder + "/new"),
        lambda: os.rename(file, file + "2"), lambda: os.unlink(file), lambda: os.symlink("a", file + "3"), lambda: os.chmod(file, 0o600),
        lambda: os.utime(file), lambda: subprocess.run(["true"]), lambda: os.system("true"), lambda: os.fork(),
        lambda: os.kill(os.getpid(), 0), lambda: fcntl.flock(reading, fcntl.LOCK_EX),
        lambda: socket.socket(socket.AF_UNIX).connect("/nowhere"),
    ):
        try:
            does()
        except program.NotAtOnce:
            continue
        print("does:", does.__code__.co_firstlineno, does.__code__.co_names)
    program.looks_only = False
os.unlink(file)
"""


def test_what_only_looks_can_write_and_start_nothing_and_take_no_lock(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    package = Path(__file__).parents[2] / "lab"
    words = [sys.executable, "-I", "-S", "-c", WATCHED, str(package), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def asked(*answers: bytes, number: signal.Signals | None = None) -> subprocess.CompletedProcess[bytes]:
    """What a client does that gets answers; before the last one, a signal perhaps, which it is to pass on if there was one before."""
    if (perl := shutil.which("perl")) is None:
        pytest.skip("there is no perl here: no command is asked of a server")
    name = f"homelab-test-{os.getpid()}"
    client = Path(__file__).parents[2] / "lab/host/command.pl"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"\0{name} {Path('/proc/self/ns/mnt').readlink()}")
        listener.listen(1)
        environment = {COMMANDS: f"{os.environ[COMMANDS].partition(':')[0]}:{name}"}
        words = [perl, str(client), "--", "/bin/false", "run.py", "uname"]
        process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        connection, _ = listener.accept()
        with connection:
            _, streams, _, _ = socket.recv_fds(connection, 4096, 3)
            for stream in streams:
                os.close(stream)
            for answer in answers[:-1]:
                connection.sendall(answer)
            if number is not None and answers[:-1]:
                taken = f"/proc/{process.pid}/status"
                wait_until(
                    lambda: bool(int(Path(taken).read_text().split("SigCgt:")[1].split()[0], 16) >> number - 1 & 1)
                )
                process.send_signal(number)
                assert connection.recv(1) == bytes([number])
            elif number is not None:
                process.send_signal(number)
                process.wait(PATIENCE)
            with contextlib.suppress(BrokenPipeError):
                connection.sendall(answers[-1])
    output, errors = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(words, process.returncode, output, errors)


BEGUN = struct.pack("I", 1 << 17)


def told(status: int, errors: bytes, output: bytes, *become: bytes) -> bytes:
    head = struct.pack("3I", 1 << 16 | status, len(errors), len(output))
    return head + errors + output + b"".join(word + b"\0" for word in become)


def test_a_client_that_is_told_everything_says_it_and_ends_or_becomes_another_program() -> None:
    done = asked(told(3, b"er\xff\n", b"a\0b" * 10_000))
    assert (done.returncode, done.stdout, done.stderr) == (3, b"a\0b" * 10_000, b"er\xff\n")
    done = asked(
        told(0, b"", b"first ", b"/bin/sh", b"-c", b'printf "%s|" "$@"; exit 7', b"sh", b"", b"two words", b"")
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, b"first |two words||", b"")
    assert asked(told(0, b"", b"more")[:-1]).returncode == 137, "a server that was killed as it answered"


def test_a_signal_that_comes_before_the_answer_is_the_clients() -> None:
    done = asked(told(0, b"", b"said", b"/bin/sleep", b"300"), number=signal.SIGTERM)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, b"")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM])
def test_a_signal_that_comes_once_a_command_has_begun_is_the_commands(number: signal.Signals) -> None:
    assert asked(BEGUN, struct.pack("I", 3 << 8), number=number).returncode == 3
    assert asked(BEGUN, struct.pack("I", number), number=number).returncode == -number
    assert asked(BEGUN + struct.pack("I", 4 << 8)).returncode == 4, "it ended at once"
    assert asked(BEGUN, b"").returncode == 137, "the server was killed"
