"""The lab's SSH server behaves as the sshd of a Proxmox host, for the clients that the program uses."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import asyncssh
import pytest
from asyncssh.constants import OPEN_CONNECT_FAILED
from asyncssh.packet import String

from lab import Lab
from lab.host.state import COMMANDS
from lab.ssh import may_forward
from tests.plain import PLAIN
from tests.simulator.ssh_kit import connect, connected
from tests.waiting import PATIENCE, wait_until, writer_of

CLIENT = """
import asyncio, sys, asyncssh
async def main():
    options = dict(username="root", client_keys=[sys.argv[2]], known_hosts=None, config=None)
    async with asyncssh.connect("127.0.0.1", int(sys.argv[1]), **options) as connection:
        await connection.run("bash -s", input=sys.argv[3])
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def lab(labs: Callable[[str], Lab]) -> Lab:
    return labs("rtx5090")


def execute(lab: Lab, command: str, stdin: bytes = b"") -> asyncssh.SSHCompletedProcess:
    async def main() -> asyncssh.SSHCompletedProcess:
        async with connected(lab.connection) as connection:
            return await connection.run(command, input=stdin, encoding=None)

    return asyncio.run(main())


def test_a_command_gives_its_output_on_both_streams_and_its_exit_status(lab: Lab) -> None:
    done = execute(lab, "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.exit_status) == (b"out\n", b"err\n", 7)


def test_bash_becomes_the_last_program_of_a_command(lab: Lab) -> None:
    """Also the host's Python, which is a function to it; nothing may come after that."""
    look = 'export shell=$$\n/usr/bin/python3 -I -c \'import os; print(open("/proc/" + os.environ["shell"] + "/cmdline").read())\''
    last, other = (execute(lab, f"{look}{more}").stdout for more in ("", "; :"))
    assert isinstance(last, bytes) and isinstance(other, bytes)
    assert other.startswith(b"bash\0") and not last.startswith(b"bash\0") and b"lab-python" in last


def test_a_script_on_stdin_runs_in_bash_with_its_arguments(lab: Lab) -> None:
    done = execute(lab, "bash -s -- apply", b'[[ -n $BASH_VERSION ]] && printf "%s\\n" "$@"\n')
    assert (done.stdout, done.exit_status) == (b"apply\n", 0)


def test_a_command_sees_the_hosts_environment_and_nothing_of_the_callers(lab: Lab) -> None:
    done = execute(lab, "env -0; pwd")
    assert isinstance(done.stdout, bytes)
    *entries, folder = done.stdout.split(b"\0")
    environment = dict(entry.decode().split("=", 1) for entry in entries)
    for of_bash in ("PWD", "SHLVL", "_", "OLDPWD"):
        environment.pop(of_bash, None)
    # As sshd says it: the client's address and port, the host's.
    assert re.fullmatch(r"[0-9.]+ [0-9]+ [0-9.]+ [0-9]+", environment.pop("SSH_CONNECTION"))
    # The lab's process and this one may each have a command server.
    assert bool(environment.pop(COMMANDS, "")) is not PLAIN
    assert environment == {k: v for k, v in lab.machine.environment().items() if k not in ("PWD", COMMANDS)}
    assert environment["HOMELAB_ROOT"] == str(lab.root)
    assert folder.decode().strip() == environment["HOME"] == str(lab.root / "root")


def test_a_command_leads_a_session_of_its_own_and_has_pipes(lab: Lab) -> None:
    done = execute(lab, "cut -d' ' -f1,5,6 /proc/$$/stat; readlink /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2")
    assert isinstance(done.stdout, bytes)
    numbers, *streams = done.stdout.decode().splitlines()
    assert len(set(numbers.split())) == 1
    assert [stream.split(":")[0] for stream in streams] == ["pipe"] * 3


def test_bytes_pass_unchanged_and_more_than_any_buffer_holds(lab: Lab) -> None:
    data = os.urandom(1 << 20) * 12
    done = execute(lab, "cat", data)
    assert done.stdout == data
    assert lab.commands()[-1]["stdin_bytes"] == len(data)


def test_output_is_not_read_faster_than_the_client_takes_it(lab: Lab) -> None:
    written = lab.root / "tmp" / "written"

    async def main() -> None:
        async with connected(lab.connection) as connection:
            text = f"for i in {{1..400}}; do head -c 65536 /dev/zero; echo $i > {written}; done"
            async with connection.create_process(text, encoding=None, window=1 << 16) as process:
                await process.stdout.readexactly(1)
                seen = -1
                # What the command got rid of no longer grows: it is held up by a client that doesn't read.
                while seen != (seen := int(written.read_text() or 0) if written.exists() else 0):
                    await asyncio.sleep(0.5)
                assert seen < 100
                assert len(await process.stdout.read()) == 400 * 65536 - 1

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_a_command_that_reads_no_stdin_ends_though_much_was_sent(lab: Lab) -> None:
    async def main() -> int | None:
        async with connected(lab.connection) as connection:
            process = await connection.create_process("exit 3", encoding=None)
            with contextlib.suppress(BrokenPipeError):  # it may have ended before anything was sent
                process.stdin.write(os.urandom(8 << 20))
            return (await process.wait()).exit_status

    assert asyncio.run(main()) == 3


def test_a_command_ended_by_a_signal_says_which(lab: Lab) -> None:
    done = execute(lab, "kill -TERM $$")
    assert done.exit_signal is not None
    assert done.exit_signal[0] == "TERM"
    assert lab.commands()[-1]["exit"] == 128 + signal.SIGTERM


def test_a_background_process_that_holds_stdout_keeps_the_channel_open(lab: Lab) -> None:
    assert execute(lab, "(sleep 0.3; echo late) & echo soon").stdout == b"soon\nlate\n"


def test_a_detached_process_doesnt_hold_the_channel_and_lives_on(lab: Lab) -> None:
    gate = lab.root / "tmp" / "gate"
    os.mkfifo(gate)
    execute(lab, f"setsid bash -c 'read -r word < {gate}; echo $word > {gate}.out' > /dev/null 2>&1 < /dev/null &")
    with writer_of(gate) as writer:
        writer.write("alive\n")
    wait_until(lambda: Path(f"{gate}.out").exists() and Path(f"{gate}.out").read_text() == "alive\n")


def test_environment_variables_are_refused_as_by_sshd_without_accept_env(lab: Lab) -> None:
    async def main() -> tuple[bool | None, object]:
        async with connected(lab.connection) as connection:
            # AsyncSSH's client sends variables without asking for an answer; Go's asks, and fails on a refusal.
            process = await connection.create_process("echo ${PULUMI_COMMAND_STDOUT-unset}; read -r line")
            accepted = await process.channel._make_request(b"env", String("PULUMI_COMMAND_STDOUT"), String("taken"))
            process.stdin.write_eof()
            sent = await connection.run("echo ${PULUMI_COMMAND_STDOUT-unset}", env={"PULUMI_COMMAND_STDOUT": "taken"})
            return accepted, sent.stdout

    assert asyncio.run(main()) == (False, "unset\n")


@pytest.mark.parametrize("user", ["admin", "root"])
def test_only_root_with_the_labs_key_gets_in(lab: Lab, tmp_path: Path, user: str) -> None:
    keys = {"admin": lab.connection["privateKeyFile"], "root": asyncssh.generate_private_key("ssh-ed25519")}
    mark = lab.mark()
    with pytest.raises(asyncssh.PermissionDenied):
        asyncio.run(connect(lab.connection, username=user, client_keys=[keys[user]]))
    wait_until(lambda: len(lab.connections(since=mark)) == 1)
    [refused] = lab.connections(since=mark)
    assert (refused["user"], refused["accepted"]) == (user, False)


def test_no_password_is_asked_for(lab: Lab) -> None:
    with pytest.raises(asyncssh.PermissionDenied):
        asyncio.run(connect(lab.connection, client_keys=None, password="secret", preferred_auth="password"))


def test_the_host_key_is_the_one_that_lab_json_names(lab: Lab) -> None:
    ssh = lab.connection
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    known = asyncssh.import_known_hosts(f"[{ssh['host']}]:{ssh['port']} {other}")
    with pytest.raises(asyncssh.HostKeyNotVerifiable):
        asyncio.run(connect(lab.connection, known_hosts=known))


def test_a_shell_and_a_connection_to_a_port_where_nobody_listens_are_refused(lab: Lab) -> None:
    async def main() -> tuple[int, str]:
        async with connected(lab.connection) as connection:
            with pytest.raises(asyncssh.ChannelOpenError):
                await connection.create_process()
            with pytest.raises(asyncssh.ChannelOpenError) as refused:
                await connection.open_connection("127.0.0.1", 1)
            return refused.value.code, refused.value.reason

    assert asyncio.run(main()) == (2, "Connection refused")


@pytest.mark.parametrize(
    ("config", "allowed"),
    [
        ("", True),
        ("#AllowTcpForwarding no\nPort 22\n", True),
        ("AllowTcpForwarding no\n", False),
        ("allowtcpforwarding=remote\n", False),
        ("AllowTcpForwarding local\nAllowTcpForwarding no\n", True),
        ("  DisableForwarding\tyes\n", False),
        ("PermitOpen none\n", False),
        ("PermitOpen 127.0.0.1:8006 localhost:85\n", False),
        ("PermitOpen 127.0.0.1:8006 127.0.0.1:85\n", True),
        ("PermitOpen 127.0.0.1:*\n", True),
        ("Match User bob\n  AllowTcpForwarding no\n", True),
    ],
)
def test_sshd_config_says_who_may_connect_through_it(tmp_path: Path, config: str, allowed: bool) -> None:
    file = tmp_path / "etc/ssh/sshd_config"
    file.parent.mkdir(parents=True)
    file.write_text(config)
    assert may_forward(tmp_path, "127.0.0.1:85") is allowed
    included = tmp_path / "etc/ssh/sshd_config.d/own.conf"
    included.parent.mkdir()
    included.write_text("AllowTcpForwarding no\n")
    assert not may_forward(tmp_path, "127.0.0.1:85")


def test_sftp_works_in_the_hosts_tree_and_cant_leave_it(lab: Lab) -> None:
    async def main() -> tuple[str, bytes]:
        async with connected(lab.connection) as connection, connection.start_sftp_client() as sftp:
            async with sftp.open("/etc/from-sftp", "wb") as file:
                await file.write(b"\0\xff")
            async with sftp.open("../../../../../etc/from-sftp", "rb") as file:
                return str(await sftp.realpath(".")), await file.read()

    assert asyncio.run(main()) == ("/root", b"\0\xff")
    assert (lab.root / "etc/from-sftp").read_bytes() == b"\0\xff"


def test_scp_copies_into_the_hosts_tree(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"copied")

    async def main() -> None:
        async with connected(lab.connection) as connection:
            await asyncssh.scp(tmp_path / "file", (connection, "/tmp/by-scp"))

    asyncio.run(main())
    assert (lab.root / "tmp/by-scp").read_bytes() == b"copied"


def test_keepalives_are_answered_while_a_command_says_nothing(lab: Lab) -> None:
    async def main() -> int | None:
        async with connected(lab.connection, keepalive_interval=0.1, keepalive_count_max=2) as connection:
            return (await connection.run("sleep 1")).exit_status

    assert asyncio.run(main()) == 0


def test_several_commands_run_at_once_over_one_connection(lab: Lab) -> None:
    first, second = lab.root / "tmp/one", lab.root / "tmp/two"
    os.mkfifo(first)
    os.mkfifo(second)

    async def main() -> list[object]:
        async with connected(lab.connection) as connection:
            # Each ends only if the other runs at the same time.
            there = connection.run(f"echo a > {first}; cat {second}")
            back = connection.run(f"cat {first}; echo b > {second}")
            return [done.stdout for done in await asyncio.gather(there, back)]

    mark = lab.mark()
    assert asyncio.run(asyncio.wait_for(main(), PATIENCE)) == ["b\n", "a\n"]
    assert len(lab.connections(since=mark)) == 1
    assert len({entry["n"] for entry in lab.commands(since=mark)}) == 2


def test_a_connection_has_ten_sessions_at_a_time(lab: Lab) -> None:
    async def main() -> int | None:
        async with connected(lab.connection) as connection:
            ten = [await connection.create_process("cat") for _ in range(10)]
            with pytest.raises(asyncssh.ChannelOpenError, match="open failed") as refused:
                await connection.create_process("true")
            assert refused.value.code == OPEN_CONNECT_FAILED
            ten[0].stdin.write_eof()
            await ten[0].wait_closed()
            status = (await connection.run("true")).exit_status
            for one in ten[1:]:
                one.stdin.write_eof()
                await one.wait_closed()
            return status

    assert asyncio.run(asyncio.wait_for(main(), PATIENCE)) == 0


def test_every_connection_and_command_is_logged_before_its_client_knows_the_result(lab: Lab) -> None:
    mark = lab.mark()
    execute(lab, "cat > /dev/null; exit 4", b"12345")
    [connection], [command] = lab.connections(since=mark), lab.commands(since=mark)
    assert (connection["user"], connection["accepted"]) == ("root", True)
    assert command["connection"] == connection["n"]
    assert (command["command"], command["stdin_bytes"], command["exit"]) == ("cat > /dev/null; exit 4", 5, 4)
    assert connection["at"] <= command["started"] <= command["ended"]


def test_a_script_whose_client_is_killed_runs_on_to_its_end_and_is_logged(lab: Lab) -> None:

    def waiting_script(lab: Lab, name: str) -> tuple[str, Path, Path]:
        """A script that waits for a word in a pipe, then reads its stdin's rest and leaves a file."""
        gate, result = lab.root / "tmp" / f"{name}.gate", lab.root / "tmp" / f"{name}.result"
        os.mkfifo(gate)
        script = f"main() {{ read -r word < {gate}; cat > {result}.rest; echo $word > {result}; exit 6; }}\nmain\n"
        return script, gate, result

    script, gate, result = waiting_script(lab, "killed")
    ssh = lab.connection
    mark = lab.mark()
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(ssh["port"]), ssh["privateKeyFile"], script], start_new_session=True
    )
    lab.wait_command("killed.gate")
    client.kill()
    assert client.wait() == -signal.SIGKILL
    lab.wait_disconnected()
    with writer_of(gate) as writer:
        writer.write("done\n")
    lab.wait_idle()
    assert result.read_text() == "done\n"
    [command] = lab.commands(since=mark)
    assert (command["exit"], command["client"]) == (6, "lost")


def test_a_script_that_writes_to_a_client_that_is_gone_gets_a_broken_pipe(lab: Lab) -> None:
    gate, result = lab.root / "tmp" / "epipe.gate", lab.root / "tmp" / "epipe.result"
    os.mkfifo(gate)
    script = f"trap '' PIPE; read -r word < {gate}; echo $word || echo broken > {result}; echo end >> {result}\n"

    async def main() -> None:
        connection = await connect(lab.connection)
        process = await connection.create_process("bash -s")
        process.stdin.write(script)
        await asyncio.to_thread(lab.wait_command, "epipe.gate")
        connection.abort()
        await connection.wait_closed()

    asyncio.run(main())
    lab.wait_disconnected()
    with writer_of(gate) as writer:
        writer.write("word\n")
    lab.wait_idle()
    assert result.read_text() == "broken\nend\n"


def test_a_lost_client_gives_the_script_the_end_of_its_stdin(lab: Lab) -> None:
    result = lab.root / "tmp" / "half-sent"

    async def main() -> None:
        connection = await connect(lab.connection)
        process = await connection.create_process(f"cat > {result}; echo end >> {result}")
        process.stdin.write("half")
        await asyncio.to_thread(lab.wait_command, "half")
        connection.abort()
        await connection.wait_closed()

    asyncio.run(main())
    lab.wait_idle()
    assert result.read_text() == "halfend\n"


def test_a_command_over_a_new_connection_takes_milliseconds(lab: Lab) -> None:
    """Generous: what is meant is below 60 ms; 1 s would be a wait for something, not a busy machine."""

    async def main() -> float:
        started = time.monotonic()
        async with connected(lab.connection) as connection:
            await connection.run("true")
        return time.monotonic() - started

    assert min(asyncio.run(main()) for _ in range(5)) < 1.0
