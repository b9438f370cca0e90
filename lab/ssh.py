"""SSH servers, the host's and its guests': commands in bash on a system's tree, and sftp in it, as OpenSSH would serve them.

What one does as sshd does: accounts of its system, by public key; no environment variables taken from the client
(sshd_config has no AcceptEnv for them); exit status or signal reported; background processes that hold a command's
stdout keep the channel open; ten sessions at a time on a connection; of forwarding, connections from here (direct-tcpip) as sshd_config lets them. What it
doesn't have: login shells, terminals, other forwarding.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import posixpath
import re
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol

import asyncssh
from asyncssh.channel import SSHChannel
from asyncssh.constants import OPEN_ADMINISTRATIVELY_PROHIBITED, OPEN_CONNECT_FAILED

from lab import ports
from lab.host.state import HOST_PYTHON
from lab.processes import Processes
from lab.state import StatePaths, append_log, now, read_log

_CHUNK = 65536
# sshd_config's MaxSessions: channels of a connection for commands and sftp.
_MAX_SESSIONS = 10
# How much of a command's stdin is kept, to find a text in it: scripts, the longest many times over.
_SCRIPT_KEPT = 1 << 20
# What bash opens as a connection: a lab's commands have this machine's network, in which its host's services have other ports.
_DEV_TCP = re.compile(r"/dev/tcp/([\w.-]+)/(\d+)")
# bash becomes the last program of a command. A function, which the host's Python is to it, it calls.
_LAST_PYTHON = re.compile(rf"""(?<![^\n]){HOST_PYTHON}((?: (?:[\w./:=,+-]|'[^']*'|"'"|"\$\w+")+)*)\Z""")


@dataclass
class Numbers:
    """The last numbers of connections and commands in a lab's logs, counted from 1 over all its servers."""

    connections: int = 0
    commands: int = 0

    def count(self, state: Path) -> None:
        """Go on from what the logs have."""
        for name in ("connections", "commands"):
            setattr(self, name, max((entry["n"] for entry in read_log(state, name)), default=0))


class System(Protocol):
    """What a server needs to know of the system that it belongs to: the host, or a guest.

    `state` is the lab's folder, in which the logs are; `root` the system's own tree; `guest` a guest's id.
    """

    state: Path
    processes: Processes
    numbers: Numbers

    @property
    def root(self) -> Path:
        """The system's file system."""

    @property
    def guest(self) -> int | None:
        """The guest's id; None for the host."""

    def environment_of(self, user: str) -> dict[str, str]:
        """Return the environment in which a user's commands run."""

    def accepts(self, user: str, key: asyncssh.SSHKey) -> bool:
        """Return whether a key lets a user in."""

    def accepts_password(self, user: str, password: str) -> bool:
        """Return whether a password lets a user in."""

    def fault(self, name: str) -> str | None:
        """Return a fault that is set, a part of a command or script here; None when there's no such fault."""

    def activity(self) -> None:
        """Say that a command has started, read its script or ended, or that a connection has."""

    def port_inside(self, address: str, port: int) -> int | None:
        """Return the port of 127.0.0.1 here for what answers at an address inside; None where nothing does."""


def make_key(path: Path, comment: str) -> None:
    """Generate a key pair, `path` and `path.pub`, unless it is there."""
    if path.exists() and Path(f"{path}.pub").exists():
        return
    key = asyncssh.generate_private_key("ssh-ed25519", comment=comment)
    Path(f"{path}.pub").write_bytes(key.export_public_key())
    path.touch(mode=0o600)
    path.write_bytes(key.export_private_key())


def make_keys(state: Path) -> None:
    """Generate the user's key and the host's, unless they are there."""
    paths = StatePaths(state)
    make_key(paths.user_key, "homelab-lab")
    make_key(paths.host_key, "homelab-lab-host")


def is_authorized(key: asyncssh.SSHKey, authorized_keys: str) -> bool:
    """Return whether the lines of an authorized_keys file have a key; their options aren't looked at."""
    wanted = key.export_public_key().decode("ascii").split()[1]
    return any(wanted in line.split() for line in authorized_keys.splitlines() if not line.startswith("#"))


def public_key(private_key: Path) -> str:
    """Return a key's public half as `type base64`, without its comment."""
    return " ".join(Path(f"{private_key}.pub").read_text(encoding="ascii").split()[:2])


def may_forward(root: Path, target: str) -> bool:
    """Return whether a system's sshd_config lets a client reach an `address:port` through it (sshd_config(5)).

    The included files come first, as in Debian's, and of each keyword the first value counts. The files are read for each connection, as if
    sshd were reloaded with each change; what follows a `Match` isn't looked at.
    """
    values: dict[str, str] = {}
    for path in [*sorted((root / "etc/ssh/sshd_config.d").glob("*.conf")), root / "etc/ssh/sshd_config"]:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for line in re.split(r"(?im)^\s*match\s", text)[0].splitlines():
            keyword, *value = re.split(r"[\s=]+", line.strip(), maxsplit=1)
            values.setdefault(keyword.lower(), "".join(value).lower())
    if values.get("disableforwarding") == "yes" or values.get("allowtcpforwarding") in ("no", "remote"):
        return False
    return any(one == "any" or fnmatch(target, one) for one in values.get("permitopen", "any").split())


async def _when_ready(add: Callable[..., object], remove: Callable[[int], object], descriptor: int) -> None:
    """Wait until a non-blocking descriptor can be read or written."""
    ready = asyncio.get_running_loop().create_future()

    def tell() -> None:
        if not ready.done():
            ready.set_result(None)

    add(descriptor, tell)
    try:
        await ready
    finally:
        remove(descriptor)


async def _read(descriptor: int) -> bytes:
    """Read what a pipe has; empty at its end."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return os.read(descriptor, _CHUNK)
        except BlockingIOError:
            await _when_ready(loop.add_reader, loop.remove_reader, descriptor)


async def _write(descriptor: int, data: bytes) -> None:
    """Write all of data to a pipe.

    Raises:
        BrokenPipeError: nobody reads it any more.
    """
    loop = asyncio.get_running_loop()
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            await _when_ready(loop.add_writer, loop.remove_writer, descriptor)


class Pipe:
    """A pipe to or from a command: our end non-blocking, each end closed once."""

    def __init__(self, ours_reads: bool) -> None:
        read_end, write_end = os.pipe()
        self.ours, self.theirs = (read_end, write_end) if ours_reads else (write_end, read_end)
        os.set_blocking(self.ours, False)
        self._open = {self.ours, self.theirs}

    def close(self, end: int) -> None:
        """Close an end, unless it is closed."""
        if end in self._open:
            self._open.remove(end)
            os.close(end)


class Command:
    """One command of a system, started through a channel."""

    def __init__(self, system: System, number: int, connection: Connection, channel: CommandChannel) -> None:
        self._system = system
        self._connection = connection
        self._channel = channel
        self.number = number
        self.text = channel.command or ""
        self.script = bytearray()
        #: Its pipes are closed, by its end or because its client was lost.
        self.let_go = False
        self._stdin_bytes = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._task: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()

    def begin(self) -> None:
        """Start the command; it is logged when it has ended."""
        self._connection.server.commands.add(self)
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._system.activity()

    async def wait(self) -> None:
        """Wait until the command has ended and is logged."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def mentions(self, text: str) -> bool:
        """Return whether the command, or what it was sent on stdin so far, contains text."""
        return text in self.text or text.encode() in self.script

    def lose_client(self) -> None:
        """Close the command's pipes: its channel is gone.

        That is all that OpenSSH does where there is no terminal (session.c; a HUP would come from the tty).
        The command runs on in its own session, reads end-of-file, and gets SIGPIPE or EPIPE if it writes.
        """
        self._lost.set()

    async def _run(self) -> None:
        started = now()
        status: int | None = None
        try:
            status = await self._serve()
        finally:
            self._connection.server.commands.discard(self)
            self._log(started, status)
            self._system.activity()
        self._report(status)

    async def _serve(self) -> int:
        stdin, stdout, stderr = Pipe(ours_reads=False), Pipe(ours_reads=True), Pipe(ours_reads=True)
        pipes = (stdin, stdout, stderr)
        try:
            environment = self._system.environment_of(self._connection.user)
            home = Path(environment["HOME"])
            text = _LAST_PYTHON.sub(r'exec "$LAB_STATE/bin/lab-python"\1', self.text)
            self._process, ended = self._system.processes.start(
                ["bash", "-c", _DEV_TCP.sub(self._led_inside, text)],
                environment,
                home if home.is_dir() else Path("/"),  # as sshd, when a script has removed it
                *(pipe.theirs for pipe in pipes),
            )
            for pipe in pipes:
                pipe.close(pipe.theirs)
            await self._exchange(stdin, stdout, stderr, ended)
            for pipe in pipes:
                pipe.close(pipe.ours)
            self.let_go = True
            self._system.activity()
            return await ended
        finally:
            for pipe in pipes:
                pipe.close(pipe.ours)
                pipe.close(pipe.theirs)

    def _led_inside(self, connection: re.Match[str]) -> str:
        port = self._system.port_inside(connection[1], int(connection[2]))
        return connection[0] if port is None else f"/dev/tcp/127.0.0.1/{port}"

    async def _exchange(self, stdin: Pipe, stdout: Pipe, stderr: Pipe, ended: asyncio.Future[int]) -> None:
        """Pass data on until all output is forwarded and the command has ended, or the client is lost."""
        outgoing = [
            asyncio.create_task(self._forward(stdout, self._channel.stdout)),
            asyncio.create_task(self._forward(stderr, self._channel.stderr)),
        ]
        complete = asyncio.gather(*outgoing, asyncio.shield(ended))
        lost = asyncio.create_task(self._lost.wait())
        all_of_it: list[asyncio.Future[Any]] = [complete, lost, *outgoing, asyncio.create_task(self._feed(stdin))]
        await asyncio.wait((complete, lost), return_when=asyncio.FIRST_COMPLETED)
        for one in all_of_it:
            one.cancel()
        # Each has let go of its descriptor before that is closed: the next command may be given the same number a
        # moment later, and the event loop would take it for the old one, and never wake anybody.
        await asyncio.gather(*all_of_it, return_exceptions=True)

    async def _feed(self, pipe: Pipe) -> None:
        """Forward the client's data to the command's stdin; its end closes the pipe."""
        readable = True
        hangs = self._system.fault("script-hangs")
        begun = False
        with contextlib.suppress(asyncssh.Error, OSError):  # the connection was lost: an end-of-file as well
            while data := await self._channel.stdin.read(_CHUNK):
                self._stdin_bytes += len(data)
                if len(self.script) < _SCRIPT_KEPT:
                    self.script += data
                    self._system.activity()
                if hangs is not None and self.mentions(hangs):
                    # It has begun, and never gets to its end: the first of several lines is there.
                    first = data.find(b"\n") + 1
                    await self._give(pipe, b"" if begun or first == len(data) else data[:first])
                    await self._lost.wait()
                    break
                begun = begun or b"\n" in data
                if readable:
                    readable = await self._give(pipe, data)
        pipe.close(pipe.ours)
        self._system.activity()

    @staticmethod
    async def _give(pipe: Pipe, data: bytes) -> bool:
        """Write to the command; return False when it reads no more: the rest is dropped, as sshd does."""
        try:
            await _write(pipe.ours, data)
        except BrokenPipeError:
            pipe.close(pipe.ours)
            return False
        return True

    async def _forward(self, pipe: Pipe, writer: asyncssh.SSHWriter[bytes]) -> None:
        """Forward the command's output to the client, no faster than it takes it."""
        try:
            while data := await _read(pipe.ours):
                writer.write(data)
                await writer.drain()
        except (asyncssh.Error, OSError):
            self.lose_client()  # there is nobody to forward to, which the channel may be told of a moment later

    def _report(self, status: int | None) -> None:
        self._connection.sessions.discard(self._channel)  # before the client hears of it
        if status is None or self._lost.is_set():
            return
        if status < 0:
            self._channel.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
        else:
            self._channel.exit(status)

    def _log(self, started: str, status: int | None) -> None:
        entry: dict[str, Any] = {
            "n": self.number,
            "connection": self._connection.number,
            "command": self.text,
            "stdin_bytes": self._stdin_bytes,
            "started": started,
            "ended": now(),
            # As a shell has it: 128 + signal.
            "exit": status if status is None or status >= 0 else 128 - status,
            **_named(self._system),
        }
        if self._lost.is_set():
            entry["client"] = "lost"
        append_log(self._system.state, "commands", entry)


def _named(system: System) -> dict[str, Any]:
    """What a log's line says of whose it is: nothing for the host."""
    return {} if system.guest is None else {"guest": system.guest}


class CommandChannel(asyncssh.SSHServerProcess[bytes]):
    """A session channel: a command, or sftp. A shell is refused: the lab serves programs."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection.run, connection.sftp, 3, True)
        self._connection = connection
        self.running: Command | None = None

    def shell_requested(self) -> bool:
        """Refuse a login shell."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel was closed, or the connection broke."""
        super().connection_lost(exc)
        self._connection.sessions.discard(self)
        if self.running is not None:
            self.running.lose_client()


class Files(asyncssh.SFTPServer):
    """A system's tree over sftp. Relative paths are below the user's home, where sshd's sftp starts."""

    def __init__(self, channel: asyncssh.SSHServerChannel[bytes], root: Path, home: Path) -> None:
        super().__init__(channel, chroot=os.fsencode(root))
        self._home = b"/" + os.fsencode(home.relative_to(root))

    def map_path(self, path: bytes) -> bytes:
        """Return the machine's path for one of the system."""
        return super().map_path(posixpath.join(self._home, path))


class Connection(asyncssh.SSHServer):
    """One connection, from TCP accept to close."""

    def __init__(self, server: Server) -> None:
        self.server = server
        server.system.numbers.connections += 1
        self.number = server.system.numbers.connections
        self.sessions: set[CommandChannel] = set()
        self._connection: asyncssh.SSHServerConnection | None = None
        self._user: str | None = None
        self._peer = ""
        self._logged = False

    @property
    def user(self) -> str:
        """Who has logged in."""
        assert self._user is not None
        return self._user

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Take note of the peer."""
        self._connection = conn
        host, port, *_ = conn.get_extra_info("peername")
        self._peer = f"{host}:{port}"
        self.server.connections.add(self)
        if not self.server.listening:
            self.abort()  # accepted at the very moment in which the system went down

    def connection_lost(self, exc: Exception | None) -> None:
        """Log one that never authenticated."""
        self.server.connections.discard(self)
        self._log(accepted=False)
        self.server.system.activity()

    def begin_auth(self, username: str) -> bool:
        """Ask every user for a key or a password."""
        self._user = username
        return True

    def auth_completed(self) -> None:
        """Log one that did authenticate."""
        self._log(accepted=True)

    def public_key_auth_supported(self) -> bool:
        """Public keys are one way in."""
        return True

    def password_auth_supported(self) -> bool:
        """Passwords are the other, as on a host that was just installed."""
        return True

    def validate_password(self, username: str, password: str) -> bool:
        """Accept the passwords of the system's accounts."""
        return self.server.system.accepts_password(username, password)

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Accept the keys of the system's accounts."""
        return self.server.system.accepts(username, key)

    def session_requested(self) -> tuple[asyncssh.SSHServerChannel[bytes], CommandChannel]:
        """Open a channel that takes no environment variables from the client, as sshd without AcceptEnv.

        Raises:
            asyncssh.ChannelOpenError: The connection has as many sessions as sshd allows.

        AsyncSSH has no setting for that; it looks its request handlers up by name on the channel, so that one
        set on the channel is found first. tests/simulator/test_server_ssh.py notices if that ever changes.
        """
        assert self._connection is not None
        if len(self.sessions) >= _MAX_SESSIONS:
            raise asyncssh.ChannelOpenError(OPEN_CONNECT_FAILED, "open failed")
        channel: asyncssh.SSHServerChannel[bytes] = self._connection.create_server_channel(encoding=None)
        setattr(channel, "_process_env_request", lambda _: False)  # noqa: B010
        session = CommandChannel(self)
        self.sessions.add(session)
        return channel, session

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:
        """Connect the client with what answers inside the system.

        Raises:
            asyncssh.ChannelOpenError: its sshd_config doesn't let the client.
        """
        system, connection = self.server.system, self._connection
        if connection is None or not may_forward(system.root, f"{dest_host}:{dest_port}"):
            raise asyncssh.ChannelOpenError(OPEN_ADMINISTRATIVELY_PROHIBITED, "open failed")
        port = system.port_inside(dest_host, dest_port)
        return port is not None and connection.forward_connection("127.0.0.1", port)

    def run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        """Start a channel's command."""
        assert isinstance(process, CommandChannel)
        numbers = self.server.system.numbers
        numbers.commands += 1
        process.running = Command(self.server.system, numbers.commands, self, process)
        process.running.begin()

    def sftp(self, channel: SSHChannel[bytes]) -> Files:
        """Serve the system's tree."""
        assert isinstance(channel, asyncssh.SSHServerChannel)
        system = self.server.system
        return Files(channel, system.root, Path(system.environment_of(self.user)["HOME"]))

    def abort(self) -> None:
        """Break the connection without a word."""
        if self._connection is not None:
            self._connection.abort()

    def _log(self, accepted: bool) -> None:
        if self._logged:
            return
        self._logged = True
        system = self.server.system
        entry = {"n": self.number, "at": now(), "peer": self._peer, "user": self._user, "accepted": accepted}
        append_log(system.state, "connections", entry | _named(system))


class Server:
    """The SSH server of one system: listens or not, on a port that stays the lab's all the time."""

    def __init__(self, system: System, host_key: Path, port: int, address: str = "127.0.0.1") -> None:
        """Take the port, and don't listen yet.

        Two sockets share it: one is bound for the daemon's life and never listens, so that while the system is
        down connecting is refused and nobody else is given the port; the other listens while the system is up.
        Linux lets both bind with SO_REUSEADDR as long as none that listens was there before, which is also
        how a port that is taken is noticed.

        Args:
            host_key: the private key that the server shows itself by.
            port: TCP port, 0 for a free one.
            address: the loopback address that it is on.

        Raises:
            OSError: the port is taken.
        """
        self.system = system
        self.listening = False
        self.connections: set[Connection] = set()
        self.commands: set[Command] = set()
        self.address = address
        self._host_key = host_key
        self._holder = ports.bind(port, address)
        self.port: int = self._holder.getsockname()[1]
        self._acceptor: asyncssh.SSHAcceptor | None = None
        self._options: asyncssh.SSHServerConnectionOptions | None = None
        # Which call of listen or close was the last, and one listen at a time: both may come while one is under way.
        self._turn = 0
        self._starting = asyncio.Lock()

    async def listen(self) -> None:
        """Accept connections, unless it is closed again meanwhile."""
        self._turn += 1
        turn = self._turn
        async with self._starting:
            if self._options is None:
                self._options = await self._make_options()
            if turn != self._turn:
                return
            socket = ports.bind(self.port, self.address)
            # From here on nobody is refused, though asyncssh takes a moment until it accepts: so it can be said.
            socket.listen()
            self.listening = True
            acceptor = await asyncssh.listen(sock=socket, options=self._options)
            if turn == self._turn:
                self._acceptor = acceptor
            else:
                acceptor.close()

    async def _make_options(self) -> asyncssh.SSHServerConnectionOptions:
        options: asyncssh.SSHServerConnectionOptions = await asyncssh.SSHServerConnectionOptions.construct(
            server_factory=lambda: Connection(self),
            server_host_keys=[str(self._host_key)],
            password_auth=True,
            kbdint_auth=False,
            host_based_auth=False,
            gss_host=None,
            allow_pty=False,
            line_editor=False,
            agent_forwarding=False,
            x11_forwarding=False,
            encoding=None,
            login_timeout=30,
            # The classic exchange alone: the post-quantum ones cost more than the rest of a connection.
            kex_algs=["curve25519-sha256", "curve25519-sha256@libssh.org", "ecdh-sha2-nistp256"],
            # Each packet takes half as long as with ChaCha20, which clients prefer.
            encryption_algs=["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr"],
        )
        return options

    def close(self) -> None:
        """Stop accepting and break every connection."""
        self._turn += 1
        self.listening = False
        if self._acceptor is not None:
            # Not waited for: from Python 3.12 on that lasts until the last connection is gone.
            self._acceptor.close()
            self._acceptor = None
        for connection in list(self.connections):
            connection.abort()

    @property
    def answering(self) -> bool:
        """Whether a client gets in now; `listening` holds a moment earlier."""
        return self._acceptor is not None

    @property
    def disconnected(self) -> bool:
        """Whether nobody is connected, and every command whose client was lost has noticed."""
        return not self.connections and all(command.let_go for command in self.commands)

    async def wait_commands_ended(self) -> None:
        """Wait until no command runs. Those that were killed log themselves before they count as ended."""
        await asyncio.gather(*(command.wait() for command in list(self.commands)))
