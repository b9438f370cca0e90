"""An SSH host for tests: runs commands in a real bash, like an OpenSSH server with its stock configuration.

As there: environment variables are refused (no AcceptEnv) unless asked for, a command's exit status is
reported, a signal is delivered to the command's process group, SFTP is served, and when the process that runs a
session is killed, the connection is gone without an exit status. Passwords and keyboard-interactive are both
offered, the second without any question, which is how sshd without PAM answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal as signals
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import asyncssh
from asyncssh.channel import SSHChannel

from tests.waiting import PATIENCE

"""Generous: only a broken test waits that long."""

PASSWORD = "correct horse"

# The session's process, so that a command's $PPID is not the test's own process.
SESSION = 'bash -c "$1"; exit $?'


class SshHost:
    """One host on a free port of 127.0.0.1, in a thread of its own; a context manager.

    Args:
        root: the folder in which commands run, and the host's / over SFTP.
        accept_env: take the client's environment variables, like ``AcceptEnv *``.
        listen: listen at once. Otherwise connecting is refused until :meth:`listen`; the port is held.
    """

    def __init__(self, root: Path, *, accept_env: bool = False, listen: bool = True) -> None:
        self.root = root
        self.accept_env = accept_env
        self.connections: list[asyncssh.SSHServerConnection] = []
        self.commands: list[str] = []
        self.ended = threading.Event()
        """Set when a command has ended."""
        self.disconnected = threading.Event()
        """Set when a connection has ended."""
        self.client_key = asyncssh.generate_private_key("ssh-ed25519")
        # Exported once: the format has a random part.
        self.private_key = self.client_key.export_private_key("openssh").decode()
        """The only key that is let in."""
        self.running: dict[asyncio.Task[None], int] = {}
        """The sessions with a running command, and its process group."""
        self._host_keys = [asyncssh.generate_private_key(kind) for kind in ("ecdsa-sha2-nistp256", "ssh-ed25519")]
        self._listen_at_once = listen
        self._socket = socket.socket()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ssh-host", daemon=True)
        self._acceptor: asyncssh.SSHAcceptor | None = None

    @property
    def host_key(self) -> str:
        """The ed25519 host key, as a line of known_hosts without the name."""
        return self._host_keys[1].export_public_key("openssh").decode().strip()

    def connection(self, **changes: object) -> dict[str, object]:
        """The properties of a connection that works, with changes; None takes a property away."""
        properties: dict[str, object] = {
            "host": "127.0.0.1",
            "port": self.port,
            "user": "root",
            "privateKey": self.private_key,
            "hostKey": self.host_key,
            "dialErrorLimit": 0,
            "perDialTimeout": 30,
        }
        return {name: value for name, value in (properties | changes).items() if value is not None}

    def __enter__(self) -> SshHost:
        self._socket.bind(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._thread.start()
        if self._listen_at_once:
            self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()
        self._socket.close()

    def listen(self) -> None:
        """Starts to accept connections."""
        self._do(self._listen())

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    async def _listen(self) -> None:
        self._acceptor = await asyncssh.listen(
            sock=self._socket,
            server_factory=lambda: _Server(self),
            server_host_keys=self._host_keys,
            authorized_client_keys=asyncssh.import_authorized_keys(
                self.client_key.export_public_key("openssh").decode()
            ),
        )

    async def _stop(self) -> None:
        if self._acceptor:
            self._acceptor.close()
            await self._acceptor.wait_closed()
        for connection in self.connections:
            connection.abort()
        # What runs is ended and seen to its end: a process that is left to the loop's end would stay unclosed.
        for group in self.running.values():
            kill(group)
        if self.running:
            await asyncio.wait(self.running, timeout=PATIENCE)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


class _Session(asyncssh.SSHServerProcess[bytes]):
    """A session whose command gets signals. As with sshd, losing the connection doesn't end it."""

    group: int | None = None

    def signal_received(self, signal: str) -> None:
        if self.group is not None:
            os.killpg(self.group, getattr(signals, f"SIG{signal}"))


class _Server(asyncssh.SSHServer):
    def __init__(self, host: SshHost) -> None:
        self.host = host

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self.connection = conn
        self.host.connections.append(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        self.host.disconnected.set()

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return password == PASSWORD

    def kbdint_auth_supported(self) -> bool:
        return True

    def get_kbdint_challenge(self, username: str, lang: str, submethods: str) -> bool:
        return False

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        return True  # a bastion: forwards wherever it is asked to

    def session_requested(self) -> Any:
        channel = self.connection.create_server_channel(encoding=None, errors="strict")
        if not self.host.accept_env:
            # asyncssh has no setting for AcceptEnv: the channel's handler of "env" is replaced.
            cast(Any, channel)._process_env_request = lambda packet: False
        session = _Session(self.run, self.sftp, 3, False)
        return channel, session

    def sftp(self, channel: SSHChannel[bytes]) -> asyncssh.SFTPServer:
        chroot = os.fsencode(self.host.root)
        return asyncssh.SFTPServer(cast("asyncssh.SSHServerChannel[bytes]", channel), chroot=chroot)

    async def run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        command = process.command or ""
        self.host.commands.append(command)
        variables = {"PATH": os.environ["PATH"], "HOME": str(self.host.root), "LC_ALL": "C.UTF-8"}
        shell = await asyncio.create_subprocess_exec(
            *("bash", "-c", SESSION, "sshd-session", command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.host.root,
            env=variables | dict(process.env),
            start_new_session=True,
        )
        cast(_Session, process).group = shell.pid
        session = cast("asyncio.Task[None]", asyncio.current_task())
        self.host.running[session] = shell.pid
        feeding = asyncio.create_task(_feed(process, shell))
        try:
            await asyncio.gather(
                _pump(cast(asyncio.StreamReader, shell.stdout), process.stdout.write),
                _pump(cast(asyncio.StreamReader, shell.stderr), process.stderr.write),
            )
            status = await shell.wait()
        finally:
            feeding.cancel()
            kill(shell.pid)
            stdin = cast(asyncio.StreamWriter, shell.stdin)
            stdin.close()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                await stdin.wait_closed()
            del self.host.running[session]
            self.host.ended.set()
        if status < 0:
            self.connection.abort()
        else:
            process.exit(status)


def kill(group: int) -> None:
    """Ends a process group; one that is gone is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signals.SIGKILL)


async def _pump(source: asyncio.StreamReader, write: Callable[[bytes], None]) -> None:
    while data := await source.read(65536):
        write(data)


async def _feed(process: asyncssh.SSHServerProcess[bytes], shell: asyncio.subprocess.Process) -> None:
    stdin = cast(asyncio.StreamWriter, shell.stdin)
    try:
        while data := await process.stdin.read(65536):
            stdin.write(data)
            await stdin.drain()
        stdin.close()
    except (BrokenPipeError, ConnectionResetError):
        return  # the command ended without reading all of its input, which is its right


@contextlib.contextmanager
def refusing_port() -> Iterator[int]:
    """A port on which nobody listens, held so that nobody else gets it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])
