"""Asks the agent on a host over SSH, and runs commands there, where pulumi-command can't: reading on refresh, and
waiting for a reboot.

A process has one connection to a host, whoever asks. It is opened on first use, again where it has ended, and ends with
the process.

It is imported on first use (homelab/later.py): a run that has nothing to read doesn't pay for asyncssh.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import re
import shlex
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

import asyncssh

from homelab.errors import HomelabError, LoginRefusedError, NoPythonError, UnreachableError
from homelab.later import later
from homelab.remote import agent, loop, scripts
from homelab.settings import Host, Ssh
from homelab.settings.paths import resolved
from remote_scripts.both import confirm_boot, read_host
from remote_scripts.tools.places import PYTHON
from remote_scripts.tools.state import limit_of

if TYPE_CHECKING:  # of no use to a login
    from homelab.host import facts, resolving
    from homelab.host import kernel_log as kernel_lines
else:
    facts, resolving = later("homelab.host.facts"), later("homelab.host.resolving")
    kernel_lines = later("homelab.host.kernel_log")

T = TypeVar("T")

# The message of a step that failed (remote_scripts/tools/errors.py).
_MESSAGE = re.compile(
    r"^wanted: (?P<wanted>.*?)\nfound:  (?P<found>.*?)\nwhy:    (?P<why>.*?)\nnext:   (?P<next>.*?)\s*\Z",
    re.DOTALL | re.MULTILINE,
)

# Commands at a time on a connection, one of which is the guard's; sshd refuses more than its MaxSessions, of which 10
# are the default.
COMMANDS = 8
# Changes that Proxmox VE is asked for at a time: each of its three workers (PVE::Daemon, max_workers of pvedaemon) may
# wait for a lock, and the owner's web page has none then.
CHANGES = 2
# Between two keepalives of an open connection, in seconds, as all times here.
KEEPALIVE_SECONDS = 5
# How long one reading may take at least, of the time until an unconfirmed boot is undone.
SHORT_SECONDS = 15
# Limits of an answer and of the end of its log that is kept, in bytes: the reading of a host with hundreds of
# devices and guests has a quarter of a megabyte.
OUTPUT_BYTES = 16 * 1024**2
LOG_BYTES = 64 * 1024
_CHUNK = 64 * 1024
# What connects standard input and output to a port of the host, on which it also runs for who isn't root.
_BY_BASH = "bash -c 'exec 3<>/dev/tcp/127.0.0.1/{} && cat >&3 && cat <&3'"
# The begin of the line of layers/run_guard.py that names the run it waits for.
ANOTHER_RUN = "another run is at work: "
# How long this machine's SSH agent may take to name its keys, in seconds: it has them in memory.
AGENT_SECONDS = 10.0
# For so long a boot is confirmed: another run is waited for, then grub-mkconfig takes 15 s and more for each menu.
CONFIRM_SECONDS = 300.0
# Attempts to read a host whose boot is confirmed.
READ_TRIES = 3
# The begin of the layer confirm_boot's error whose cause doesn't go away by itself.
NOT_CONFIRMED = "this boot confirmed"
# Between two lines for the user that the host is waited for.
TELL_SECONDS = 5.0
# Between two attempts to reach a host that is booting; nothing on this side signals that it is back.
RETRY_SECONDS = 0.5
# How long an open connection is watched for its end, by which a host's shutdown shows, before the boot id is asked for
# again: a host whose power is cut ends no connection.
GOING_DOWN_SECONDS = 5.0
# Between two attempts after the host refused: sshd (from OpenSSH 9.8 on) locks out for a while a client that it refuses
# more often.
REFUSED_SECONDS = 6.0


class Session:
    """A host over this process's connection to it."""

    def __init__(self, host: Host, timeout: float | None = None) -> None:
        """:param timeout: seconds until there is a connection; by default the host's `timeouts.connect`."""
        self._host = host
        self._timeout = timeout or host.timeouts.connect

    def run(self, verb: str, script: str, seconds: float = 0) -> str:
        """Runs commands in a shell and returns their output; bytes that aren't UTF-8 are U+FFFD in it.

        :param seconds: how long it may take; 0, here and in what follows: as long as the host's `timeouts.api` says.
        :raises HomelabError: the script failed (its own message), or sudo did; or it printed more than OUTPUT_BYTES; or
            the host shows another host key, or refuses the login.
        :raises UnreachableError: the host doesn't answer, or the connection was lost meanwhile.
        """
        return self._run(scripts.command(verb, self._host.ssh.user), verb, script, seconds)

    def ask(
        self,
        verb: str,
        layer: str,
        wanted: Any,
        seconds: float = 0,
        on_line: Callable[[str], None] | None = None,
        *,
        ctid: int = 0,
        proxy: str = "",
        goes_on: bool = False,
    ) -> dict[str, Any]:
        """Asks this program's agent: the one that is kept there, or one that is sent along and leaves nothing behind.

        :param verb: `read`, `plan` or `apply`.
        :param layer: its name.
        :param wanted: its `Wanted`.
        :param seconds: how long its work may take; of what changes something the host ends it then.
        :param ctid: as of `agent.request`.
        :param proxy: as of `agent.request`.
        :param on_line: called with each line of its log when it comes.
        :param goes_on: the host goes on to the work's end though nobody waits for it any more.
        :returns: the answer.
        :raises HomelabError: as `run`.
        """
        # What changes something ends by itself where this connection is lost.
        seconds = seconds or self._host.timeouts.api
        limit = limit_of(seconds) if verb in ("apply", "revert") and not goes_on else 0
        request = agent.request(layer, wanted, seconds=limit, ctid=ctid, proxy=proxy)
        return scripts.answer(self._ask(verb, layer, [request], limit or seconds, on_line))

    def plan(self, questions: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
        """What layers would change, in the order of the questions: one after the other by one agent, whose way to the
        host and start take longer than a plan.

        :param questions: each layer's name with its `Wanted`.
        :raises HomelabError: as `run`; of the first that refuses.
        """
        requests = [agent.request(layer, wanted) for layer, wanted in questions]
        layers = ", ".join(layer for layer, _ in questions)
        lines = self._ask("plan", layers, requests, self._host.timeouts.api * len(questions)).strip().split("\n")
        return [scripts.answer(line) for line in lines[-len(questions) :]]

    def _ask(
        self,
        verb: str,
        layers: str,
        requests: Sequence[str],
        seconds: float,
        on_line: Callable[[str], None] | None = None,
    ) -> str:
        """The lines of the agent's answers; other arguments and errors as of `ask`.

        :param layers: their names, for an error.
        """
        command, text = agent.command_in_memory(self._host.ssh.user), agent.asked(verb, *requests)
        return self._run(command, f"{verb} {layers}", text, seconds, on_line, is_for_agent=True)

    def put_agent(self, owner: str, seconds: float) -> None:
        """Puts this program's agent on the host.

        :param owner: the stack's folder there.
        :raises HomelabError: as `run`; or the host has no Python that will do, or a login shell of another kind.
        """
        user = self._host.ssh.user
        if user == "root":  # any other's commands are sudo's, and so bash's
            self._try_shell(seconds)
        command = agent.command_to_put(user)
        self._run(command, "put the agent", agent.put(owner), seconds)

    def _try_shell(self, seconds: float) -> None:
        try:
            self._run(agent.TO_TRY, "try the login shell", "", seconds)
        except UnreachableError:
            raise
        except HomelabError as error:
            raise error.retold(
                wanted=f"a login shell of root on {self._host.address} that understands sh, as bash does",
                why="sshd hands each command of this program to that shell; nothing was changed",
                next="give the user one on the host (`chsh -s /bin/bash root`), then run `pulumi up` again",
            ) from error

    def _run(
        self,
        command: str,
        verb: str,
        script: str,
        seconds: float,
        on_line: Callable[[str], None] | None = None,
        *,
        is_for_agent: bool = False,
    ) -> str:
        """What a command prints that takes `script` from standard input; other arguments and errors as of `ask`.

        :param is_for_agent: the command may ask for the agent.
        """
        seconds = seconds or self._host.timeouts.api
        try:
            work = self._exchange(command, script, seconds, on_line, is_for_agent)
            status, output, log = loop.run(work, f"{self._host.address}, for up to {seconds:.0f} s")
        except (OSError, asyncssh.Error) as error:
            raise _connection_lost(self._host, error, verb, seconds) from error
        if len(output) > OUTPUT_BYTES:
            raise _too_long(verb, output)
        if status is None:
            ended = ConnectionError("the connection ended before the script did")
            raise _connection_lost(self._host, ended, verb, seconds)
        if status != 0:
            raise _failed(verb, _decoded(output), _decoded(log), status)
        return _decoded(output)

    async def _exchange(
        self, command: str, script: str, seconds: float, on_line: Callable[[str], None] | None, is_for_agent: bool
    ) -> tuple[int | None, bytes, bytes]:
        """Exit status (None: there was none), answer, end of the log; doesn't wait for the end of an answer that is too
        long.
        """
        log = None
        try:
            # A host that goes down may keep a connection open and answer its keepalives without ever running the
            # script.
            async with asyncio.timeout(None) as limit, self._process(command, limit, seconds) as process:
                with suppress(OSError):  # it reads no more: its output and its status say why
                    process.stdin.write(script.encode())
                    if not is_for_agent:
                        process.stdin.write_eof()
                log = asyncio.create_task(_last_bytes(process.stderr, on_line))
                output = bytearray()
                while len(output) <= OUTPUT_BYTES and (data := await process.stdout.read(_CHUNK)):
                    output += data
                    if is_for_agent and agent.WANTS_AGENT in output:
                        is_for_agent = False
                        with suppress(OSError):
                            process.stdin.write(agent.itself().encode())
                            process.stdin.write_eof()
                if len(output) > OUTPUT_BYTES:
                    return None, bytes(output), b""
                log_end = await log
                await process.wait_closed()
                return process.exit_status, bytes(output), log_end
        except TimeoutError:
            login_of(self._host).leave()
            raise
        finally:
            if log is not None:
                log.cancel()

    @asynccontextmanager
    async def _process(
        self, command: str, limit: asyncio.Timeout, seconds: float, *, waits: bool = True
    ) -> AsyncIterator[asyncssh.SSHClientProcess[bytes]]:
        """A command, as soon as it is its turn. What it does is sent to it: so where a connection turns out to have
        ended, or to take no more commands (sshd's MaxSessions), one more is opened for it.

        :param limit: ends it so many seconds after that.
        :param waits: for its turn.
        """
        for tries_left in reversed(range(COMMANDS + 2)):
            limit.reschedule(None)
            connection = await login_of(self._host).opened(self._host, self._timeout)
            has_waited = waits and connection.turns.locked()
            connection.commands += 1
            process = None
            try:
                async with connection.turns if waits else nullcontext():
                    limit.reschedule(asyncio.get_running_loop().time() + seconds)
                    process = await connection.ssh.create_process(command, encoding=None)
                    yield process
                    return
            except (OSError, asyncssh.Error) as error:
                await asyncio.sleep(0)  # asyncssh says of a connection that it has ended a moment after what ends it
                is_full = isinstance(error, asyncssh.ChannelOpenError) and not connection.ssh.is_closed()
                # Where this command has waited, the host may be another run's by now.
                has_ended = connection.ssh.is_closed() and not has_waited and tries_left > COMMANDS
                if process is not None or not tries_left or not (is_full or has_ended):
                    raise
                if is_full:
                    login_of(self._host).leave(connection)
            finally:
                if process is not None:
                    process.channel.abort()  # what it still prints is of no use; others' commands go on
                connection.commands -= 1
                connection.end_if_left()

    def exchange(self, port: int, request: str, seconds: float = 0, *, changes: bool) -> bytes | None:
        """What a server that listens on the host's own 127.0.0.1 answers, until it ends the connection; empty where it
        said nothing.

        :param request: ASCII.
        :param seconds: as of `run`.
        :param changes: the request changes something; of these, CHANGES are under way at a time.
        :returns: None: nobody listens there.
        :raises HomelabError: as `run`.
        """
        seconds = seconds or self._host.timeouts.api
        try:
            answer = loop.run(self._answer(port, request, seconds, changes=changes))
        except (OSError, asyncssh.Error) as error:
            raise _connection_lost(self._host, error, f"127.0.0.1:{port}", seconds) from error
        if answer is not None and len(answer) > OUTPUT_BYTES:
            raise _too_long(f"ask 127.0.0.1:{port}", answer)
        return answer

    async def _answer(self, port: int, request: str, seconds: float, *, changes: bool) -> bytes | None:
        connection = await login_of(self._host).opened(self._host, self._timeout)
        async with connection.changes if changes else nullcontext():
            connection.commands += 1
            try:
                async with asyncio.timeout(seconds):
                    reader, writer = await connection.ssh.open_connection("127.0.0.1", port, encoding=None)
                    try:
                        writer.write(request.encode("ascii"))
                        answer = bytearray()
                        while len(answer) <= OUTPUT_BYTES and (data := await reader.read(_CHUNK)):
                            answer += data
                        return bytes(answer)
                    finally:
                        writer.channel.abort()
            except asyncssh.ChannelOpenError as error:
                await asyncio.sleep(0)  # as in `_process`
                if connection.ssh.is_closed():
                    raise ConnectionResetError from error
                if error.code == asyncssh.OPEN_CONNECT_FAILED:
                    return None
                if error.code != asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
                    raise
            except TimeoutError:
                login_of(self._host).leave()
                raise
            finally:
                connection.commands -= 1
                connection.end_if_left()
            # sshd forbids forwarding (AllowTcpForwarding, PermitOpen): a command can connect.
            status, output, log = await self._exchange(_BY_BASH.format(port), request, seconds, None, False)
        if status is None:
            raise ConnectionError("the connection ended before the command did")
        return None if b"Connection refused" in log else output

    def boot_id(self, seconds: float) -> str:
        """The running boot's id; empty where the kernel's file can't be read.

        :raises HomelabError: as `run`.
        """
        output = self.run("read_boot", 'echo "$(<"${ROOT:-}/proc/sys/kernel/random/boot_id")"\n', seconds)
        return (output.split() or [""])[-1]  # a login may print something of its own before

    def ended(self, seconds: float) -> None:
        """Waits until the connection has ended, at most so many seconds."""

        async def until_closed() -> None:
            connection = login_of(self._host).connection
            if connection is not None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(connection.ssh.wait_closed(), seconds)

        loop.run(until_closed())

    def connect(self, *, anew: bool = False) -> None:
        """Opens the connection, if there is none.

        :param anew: a new one takes the place of an earlier one, which ends with the last command on it.
        :raises UnreachableError: the host doesn't answer in time.
        :raises HomelabError: it shows another host key, or refuses the login.
        """
        loop.run(self.connected(anew=anew))

    async def connected(self, *, anew: bool = False) -> None:
        """`connect`, for what runs on this process's loop."""
        if anew:
            login_of(self._host).leave()
        await login_of(self._host).opened(self._host, self._timeout)

    async def keep(
        self,
        layer: str,
        wanted: Any,
        on_answer: Callable[[], None],
        beat: float,
        words: asyncio.Queue[str] | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        """Asks the agent, as `ask` does, for something that goes on after the answer as long as it gets signs
        of life; returns when it or the connection has ended.

        :param on_answer: called once it has answered.
        :param beat: seconds between two signs of life.
        :param words: words that are sent to it meanwhile, a line each.
        :param on_line: called with each line that comes after the answer.
        :raises HomelabError: it failed instead of answering.
        :raises UnreachableError: the connection was lost before that.
        """
        command = agent.command_in_memory(self._host.ssh.user)
        text = agent.asked("hold", agent.request(layer, wanted))
        log_lines: list[str] = []
        seconds = self._host.timeouts.api
        ends = ExitStack()

        def begun(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
            task = asyncio.create_task(work)
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # it ends with the connection
            ends.callback(task.cancel)
            return task

        try:
            async with asyncio.timeout(None) as limit, self._process(command, limit, seconds, waits=False) as process:
                with suppress(OSError):  # it reads no more: what it says is why
                    process.stdin.write(text.encode())
                log = begun(_last_bytes(process.stderr, log_lines.append))
                output = b""  # a login may print something of its own before
                while (line := await process.stdout.readline()) and not _is_answer(line):
                    output = (output + line)[-LOG_BYTES:]
                    if line.endswith(agent.WANTS_AGENT):
                        with suppress(OSError):
                            process.stdin.write(agent.itself().encode())
                if not line:
                    await asyncio.wait([log])
                    await process.wait_closed()
                    raise _failed(f"hold {layer}", _decoded(output), "\n".join(log_lines), process.exit_status or 1)
                limit.reschedule(None)
                on_answer()
                # Not the end of its output, which never comes where the connection was lost.
                closed = begun(process.wait_closed())
                begun(_last_bytes(process.stdout, on_line))
                words = words or asyncio.Queue()
                word = begun(words.get())
                while not closed.done():
                    await asyncio.wait({closed, word}, timeout=beat, return_when=asyncio.FIRST_COMPLETED)
                    sent = b""
                    if word.done():
                        sent, word = word.result().encode(), begun(words.get())
                    with suppress(OSError):  # it has just ended
                        process.stdin.write(sent + b"\n")
        except (OSError, TimeoutError, asyncssh.Error) as error:
            other_run = next((line for line in log_lines if line.startswith(ANOTHER_RUN)), None)
            if other_run is not None:
                raise HomelabError(
                    wanted="to be the only run at work on this host",
                    found=f"{other_run}; while it was waited for, the connection was lost: it may be restarting the "
                    "host",
                    why="two at once would undo each other's changes, and could reboot the host twice",
                    next="this run changes nothing more: wait until the other one has ended, then run the same again",
                ) from error
            raise _connection_lost(self._host, error, f"hold {layer}", seconds) from error
        finally:
            ends.close()

    def read(
        self,
        *,
        guests: bool = False,
        lspci: bool = False,
        kernel_log: bool = False,
        seconds: float = 0,
    ) -> facts.HostFacts:
        """One reading of the host; other arguments as of `read_host.Wanted` and `ask`.

        :param kernel_log: also reads the kernel's messages about cards.
        :raises HomelabError: as `ask`.
        """
        wanted = read_host.Wanted(
            guests=guests,
            lspci=lspci,
            acs=self._host.iommu.acs_override is not None,
            signs=kernel_lines.filter_of_lines() if kernel_log else "",
        )
        reading = facts.parse(self.ask("read", "read_host", wanted, seconds))
        return resolving.choosing(reading, self._host.gpus)


async def _last_bytes(stream: asyncssh.SSHReader[bytes], on_line: Callable[[str], None] | None = None) -> bytes:
    """Reads a stream to its end and returns its last LOG_BYTES.

    :param on_line: called with each line, or with the last LOG_BYTES of a longer one.
    """
    end = line = b""
    while data := await stream.read(_CHUNK):
        end = (end + data)[-LOG_BYTES:]
        *lines, line = (line + data).split(b"\n")
        line = line[-LOG_BYTES:]
        if on_line:
            for text_line in lines:
                on_line(_decoded(text_line))
    return end


def _decoded(output: bytes) -> str:
    return output.decode("utf-8", errors="replace")


def _too_long(verb: str, output: bytes) -> HomelabError:
    return HomelabError(
        wanted=f"an answer of at most {OUTPUT_BYTES // 1024**2} MiB from the command to {verb.replace('_', ' ')}",
        found=f"more, and no end; it begins: {_decoded(output[:200])!r}",
        why="taking all of it in could use up this machine's memory; nothing was decided",
        next="log in as this program does and see what prints so much: `ssh HOST bash -s </dev/null`, root's "
        "~/.bashrc, a file that has grown",
    )


def _is_answer(line: bytes) -> bool:
    try:
        scripts.answer(_decoded(line))
    except HomelabError:
        return False
    return True


# A shell's exit status for a program that isn't there, which it names.
_NOT_FOUND = 127
_PYTHON = PYTHON.split()[0]


def _failed(verb: str, output: str, log: str, status: int) -> HomelabError:
    message = _MESSAGE.search(output)
    if message:
        return HomelabError(**message.groupdict())
    if status == _NOT_FOUND and _PYTHON in log:
        return NoPythonError(
            wanted="Python on that system",
            found=f"{_PYTHON} isn't there",
            why="this program's part on a host and in a VM is written in it; nothing was changed",
            next="install it there: `apt-get install python3`; then run the same again",
        )
    return HomelabError(
        wanted=f"the command to {verb.replace('_', ' ')} to succeed",
        found=f"exit status {status}: {(log or output).strip()[-500:]}",
        why="nothing can be decided without its answer",
        next="if sudo asks for a password: allow this user `sudo -n bash`, or use root",
    )


def _connection_lost(host: Host, error: Exception, verb: str, seconds: float) -> UnreachableError:
    if isinstance(error, TimeoutError):
        return UnreachableError(
            wanted=f"{host.address} to answer within {seconds:g} s ({verb})",
            found="the SSH connection works, and the answer isn't complete",
            why="nothing can be decided without it",
            next="see what keeps the host busy or hangs there, such as a dead NFS mount; a host that is only slow gets "
            "longer with timeouts.api in its settings, for a change with timeouts.step; then run the same again",
        )
    if isinstance(error, asyncssh.ConnectionLost | ConnectionResetError):
        return UnreachableError(
            wanted=f"the SSH connection to {host.address}:{host.ssh.port}, until the answer is there",
            found="it was lost in the middle: the host restarts, its sshd was stopped, or the network was cut",
            why="what was asked isn't known; another run (`pulumi up` or `pulumi destroy`, also from another "
            "machine) restarts a host that needs it",
            next="when the host answers again and no other run is at work there, run the same again",
        )
    if isinstance(error, asyncssh.ChannelOpenError):
        return UnreachableError(
            wanted=f"sshd on {host.address} to let this login run a command",
            found=f"the SSH connection works, and its sshd refuses: {error.reason}",
            why="the host can be neither read nor changed",
            next="see MaxSessions in the host's /etc/ssh/sshd_config: 1 is enough, and 0 allows no command",
        )
    return _unreachable(host, error)


def _unreachable(host: Host, error: Exception) -> UnreachableError:
    return UnreachableError(
        wanted=f"an SSH connection to {host.address}:{host.ssh.port}",
        found=in_words(error),
        why="the host can be neither read nor changed",
        next="see whether it is switched on and connected to this network, and run `pulumi up` again",
    )


def in_words(error: Exception) -> str:
    """What a person reads of an error of a connection: asyncio names its own call in the system's words' place."""
    if isinstance(error, OSError) and error.strerror:
        # Of a name that isn't known the number is another one on each system, and none of errno's.
        if error.errno and error.strerror.startswith("Connect call failed"):
            return os.strerror(error.errno)
        return error.strerror
    return str(error) or type(error).__name__


def _pinned_host_key(host: Host) -> asyncssh.SSHKey:
    """The host key that the settings name.

    :raises HomelabError: it looks like a key, and is none.
    """
    try:
        return asyncssh.import_public_key(host.ssh.pinned_host_key)
    except (asyncssh.KeyImportError, ValueError) as error:
        raise HomelabError(
            wanted=f"the public key of {host.address}, pinned in ssh.hostKey or hostKeyFile",
            found=f"{error}",
            why="without it the program can't tell whether the right host answers",
            next="take the whole line that `ssh-keyscan -t ed25519 ADDRESS` prints, without the address",
        ) from error


class _Connection:
    """An open connection. `turns`: for its commands; `changes`: for what Proxmox VE is asked to change; `commands`: how
    many commands and requests are at work, or wait; `is_left`: whoever asks next gets another one.
    """

    def __init__(self, ssh: asyncssh.SSHClientConnection) -> None:
        self.ssh = ssh
        self.turns = asyncio.Semaphore(COMMANDS - 1)
        self.changes = asyncio.Semaphore(CHANGES)
        self.commands = 0
        self.is_left = False

    def end_if_left(self) -> None:
        """Ends it if nobody needs it any more."""
        if self.is_left and not self.commands:
            self.ssh.abort()  # not `close`, which waits for an answer that a host on its way down never gives


class Login:
    """What this process has of a login to a host; made by `login_of`. `opening`: its connection, or the one that is
    being opened; `minting`, `ticket`: of the host's API (homelab/remote/proxmox/connection.py).
    """

    def __init__(self) -> None:
        self.opening: asyncio.Task[_Connection] | None = None
        self.minting, self.ticket = threading.Lock(), ""

    @property
    def connection(self) -> _Connection | None:
        """Its connection, whether it still is one; None: none was opened."""
        task = self.opening
        return task.result() if task is not None and task.done() and not task.exception() else None

    async def opened(self, host: Host, timeout: float) -> _Connection:
        """The connection; who asks while it is being opened, waits for the same one.

        :raises UnreachableError: the host doesn't answer in time.
        :raises HomelabError: it shows another host key, or refuses the login.
        """
        if self.opening is None or (self.opening.done() and (not self.connection or self.connection.ssh.is_closed())):
            self.opening = asyncio.create_task(_connected(host, timeout))
        try:
            return await asyncio.shield(self.opening)
        except HomelabError as error:
            raise error.retold() from error  # each gets one of its own

    def leave(self, full: _Connection | None = None) -> None:
        """Whoever asks next gets a new connection; this one ends with the last command on it.

        :param full: nothing happens where there is another one by now.
        """
        connection = self.connection
        if full in (None, connection):
            self.opening = None
            if connection is not None:
                connection.is_left = True
                connection.end_if_left()


_LOGINS: dict[tuple[object, ...], Login] = {}


def login_of(host: Host) -> Login:
    """What this process has of the login to a host; what the process has that this one is a fork of isn't this one's.

    :raises HomelabError: a key can't be read.
    """
    ssh = host.ssh
    parts = os.getpid(), host.address, ssh.port, ssh.user, ssh.pinned_host_key, ssh.key, ssh.agent, ssh.password
    return _LOGINS.setdefault(parts, Login())


async def log_in(host: Host, timeout: float | None = None) -> None:
    """Logs in once more, and ends that connection; on any loop, as `reach`.

    :param timeout: as of `Session`.
    :raises UnreachableError: the host doesn't answer in time.
    :raises HomelabError: it shows another host key, or refuses the login.
    """
    (await _connected(host, timeout or host.timeouts.connect)).ssh.abort()


async def reach(host: Host) -> None:
    """Checks that a login works, within `timeouts.connect`; an unreachable host is tried again until then.

    :raises UnreachableError: the host doesn't answer in time.
    :raises HomelabError: as of `log_in`.
    """
    deadline = time.monotonic() + host.timeouts.connect
    while True:
        try:
            await log_in(host, max(deadline - time.monotonic(), 1.0))
            return
        except UnreachableError:
            if time.monotonic() + RETRY_SECONDS > deadline:
                raise
        await asyncio.sleep(RETRY_SECONDS)


async def _connected(host: Host, timeout: float) -> _Connection:
    """A new connection; only the pinned host key is accepted. Arguments and errors as of `log_in`."""
    key, pinned = host.ssh.key, _pinned_host_key(host)
    async with AsyncExitStack() as exit_stack:
        agent = await _Agent.of_this_machine(exit_stack, timeout) if host.ssh.agent else None
        try:
            async with asyncio.timeout(timeout):
                keys = None if key is None else [asyncssh.import_private_key(key)]
                connection = await asyncssh.connect(
                    host.address,
                    host.ssh.port,
                    username=host.ssh.user,
                    known_hosts=([pinned], [], []),
                    client_keys=keys if agent is None else agent.keys,
                    password=host.ssh.password and host.ssh.password.get_secret_value(),
                    agent_path=None,
                    config=None,
                    keepalive_interval=KEEPALIVE_SECONDS,
                )
                return _Connection(connection)
        except (asyncssh.HostKeyNotVerifiable, asyncssh.KeyExchangeFailed) as error:
            if "host key" not in str(error).lower():
                raise _unreachable(host, error) from error
            raise await _wrong_host_key(host, pinned.get_fingerprint()) from error
        except asyncssh.KeyImportError as error:
            raise HomelabError(
                wanted="a private key in OpenSSH or PEM format, without a passphrase",
                found=str(error),
                why="the host can't be logged in to without it",
                next="use a key without a passphrase kept as a Pulumi secret (ssh.privateKey), or an agent (ssh.agent: "
                "true)",
            ) from error
        except asyncssh.PermissionDenied as error:
            if agent is not None and agent.problem:
                raise _no_key_of_the_agent(agent.problem) from error
            raise _login_refused(host, error) from error
        except (OSError, TimeoutError, asyncssh.Error) as error:
            if agent is not None and agent.is_signing and isinstance(error, TimeoutError):
                raise _no_key_of_the_agent(
                    f"an agent that has not signed within {timeout:g} s; it may wait for a confirmation"
                ) from error
            if isinstance(error, TimeoutError):
                error = TimeoutError(f"no answer within {timeout:g} s")
            if isinstance(error, asyncssh.ProtocolError) and "authentication failures" in error.reason:
                raise _login_refused(host, error, 0 if agent is None else len(agent.keys)) from error
            raise _unreachable(host, error) from error


def public_half(private_key: str | None) -> str:
    """A private key's public key, as `type base64`; empty: there is none."""
    key = asyncssh.import_private_key(private_key) if private_key else None
    return " ".join(key.export_public_key().decode("ascii").split()[:2]) if key else ""


def _login_refused(host: Host, error: Exception, offered: int = 0) -> LoginRefusedError:
    """The error of a login that the host refuses.

    :param offered: so many keys of the SSH agent, until sshd took no more.
    """
    return LoginRefusedError(
        wanted=f"to log in to {host.address}:{host.ssh.port} as {host.ssh.user}",
        found=f"refused: {error}",
        why="the host can be neither read nor changed",
        next=f"the SSH agent has {offered} keys, and sshd ends a login after a few wrong ones (MaxAuthTries): "
        "take the others out of the agent (`ssh-add -d FILE`), or set ssh.privateKeyFile"
        if offered
        else _way_in(host.ssh, host.address),
    )


def _way_in(login: Ssh, address: str) -> str:
    """How what the settings log in with is let in."""
    place = f"{login.user}'s authorized_keys on the host"
    if login.password:
        return f"correct ssh.password; or see whether its sshd takes passwords of {login.user} (PasswordAuthentication)"
    if login.private_key:
        return f"put this line into {place}: {public_half(login.key)}"
    file = login.private_key_file  # without one, the keys of the agent are copied
    named = f"-i {shlex.quote(f'{resolved(file)}.pub')} " if file else ""
    command = f"`ssh-copy-id {named}-p {login.port} {login.user}@{address}`"
    return f"put the key into {place}: {command} (on Windows: docs/windows.md)"


class _Agent:
    """This machine's SSH agent: at SSH_AUTH_SOCK, or on Windows at the pipe of its OpenSSH. `is_signing`: it was asked
    for a signature, and hasn't answered; `problem`: the reason that it gave none, for an error.
    """

    def __init__(self, keys: Sequence[asyncssh.SSHKeyPair]) -> None:
        self.keys = list(keys)
        self.is_signing = False
        self.problem = ""
        for key in self.keys:
            # asyncssh takes whatever a signature fails with for an error of its own.
            setattr(key, "sign_async", functools.partial(self._sign, cast(asyncssh.SSHAgentKeyPair, key).sign_async))  # noqa: B010

    @classmethod
    async def of_this_machine(cls, exit_stack: AsyncExitStack, timeout: float) -> _Agent:
        """The agent, with its keys.

        :param exit_stack: gets its connection.
        :raises LoginRefusedError: there is no agent, it has no key, or it doesn't answer.
        """
        seconds = min(timeout, AGENT_SECONDS)
        try:
            async with asyncio.timeout(seconds):
                agent = await exit_stack.enter_async_context(await asyncssh.connect_agent())
                keys = await agent.get_keys()
        except TimeoutError as error:
            raise _no_key_of_the_agent(
                f"an agent that has said nothing within {seconds:g} s; `ssh-add -l` would wait, too"
            ) from error
        except (OSError, ValueError) as error:
            # An OSError's text has each backslash of a path twice.
            reason = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.filename else error
            raise _no_key_of_the_agent(f"no agent that answers ({reason})") from error
        if not keys:
            raise _no_key_of_the_agent("an agent without a key")
        return cls(keys)

    async def _sign(self, sign: Callable[[bytes], Awaitable[bytes]], data: bytes) -> bytes:
        self.is_signing = True
        try:
            signature = await sign(data)
        except (OSError, ValueError) as error:
            self.problem = (
                "an agent that lists keys and signs with none: it is locked, the request was refused, or it has ended "
                f"({error})"
            )
            raise asyncssh.PermissionDenied(self.problem) from error
        self.is_signing = False
        return signature


def ask_the_agent() -> None:
    """Checks that this machine's SSH agent answers, before pulumi-command uses it, which would wait without end.

    :raises LoginRefusedError: there is no agent, it has no key, or it doesn't answer.
    """

    async def ask() -> None:
        async with AsyncExitStack() as exit_stack:
            await _Agent.of_this_machine(exit_stack, AGENT_SECONDS)

    loop.run(ask())


def _no_key_of_the_agent(problem: str) -> LoginRefusedError:
    return LoginRefusedError(
        wanted="to log in with a key of this machine's SSH agent (ssh.agent)",
        found=problem,
        why="only the agent has the key",
        next="see `ssh-add -l`; restart the agent and give it the key with "
        "`ssh-add`, unlock it (`ssh-add -X`), or set ssh.privateKeyFile",
    )


def read(host: Host, timeout: float | None = None, **options: Any) -> facts.HostFacts:
    """One reading. Arguments and errors as of `Session` and `Session.read`."""
    return Session(host, timeout).read(**options)


async def _wrong_host_key(host: Host, wanted: str) -> HomelabError:
    try:
        async with asyncio.timeout(host.timeouts.connect):
            key = await asyncssh.get_server_host_key(host.address, host.ssh.port, config=None)
        shown = key.get_fingerprint() if key else "none"
    except (OSError, TimeoutError, asyncssh.Error) as error:
        shown = f"another one ({error})"
    return HomelabError(
        wanted=f"host key {wanted} at {host.address}:{host.ssh.port}",
        found=shown,
        why="this may be another machine, or one in between: root's commands would go to it",
        next="if the host was reinstalled, compare with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on its "
        "console and correct ssh.hostKey",
    )


def confirm(
    host: Host, old_boot_id: str | None, say: Callable[[str], None], on_wait: Callable[[str], None] | None = None
) -> facts.HostFacts:
    """Confirms the running boot, unless the host has rolled itself back, and reads the host in that boot.

    A host that is rolling back is waited for until it has restarted. Then `rolled_back` of the reading is set, and
    nothing was confirmed.

    :param old_boot_id: the boot before a reboot that was begun, and that is waited for; None: no reboot was begun.
    :param say: shows a line to the user.
    :param on_wait: shows a line every few seconds while waiting; by default, `say` does.
    :raises UnreachableError: it can't be reached.
    :raises HomelabError: as of `wait_for_boot`.
    """
    reading = None
    confirmation = _Confirmation(say)
    if old_boot_id is None:
        session = Session(host)
        session.connect()
        try:
            reading = confirmation.read(session, None, 0)
        except UnreachableError as error:  # it may have been going down from its trial just then
            confirmation.failed(error)
    if reading is None:
        reading = wait_for_boot(host, old_boot_id, say, on_wait, confirmation)
    while reading.rolling_back:
        say(f"it ends its boot on trial ({reading.rolled_back}), and restarts: waiting for that")
        try:
            reading = wait_for_boot(host, reading.boot_id, say, on_wait)
        except HomelabError as error:
            say(f"it has not restarted: {error.found}")
            return reading
    return reading


def wait_for_boot(
    host: Host,
    old_boot_id: str | None,
    say: Callable[[str], None],
    on_wait: Callable[[str], None] | None = None,
    confirmation: _Confirmation | None = None,
) -> facts.HostFacts:
    """Waits for a boot with another id than `old_boot_id`, confirms it, and returns the first reading of it.

    Waits `timeouts.reboot` seconds, then as long again as the end of an unconfirmed trial and its restart may take.

    :param old_boot_id: None: any boot will do.
    :param say: shows a line to the user.
    :param on_wait: shows a line every few seconds while waiting; by default, `say` does.
    :param confirmation: the attempts so far.
    :raises UnreachableError: the host didn't come back in all that time.
    :raises HomelabError: to the end of that time it refused the login, showed another host key, or couldn't be read; or
        its layer says why the boot can't be confirmed; or the boot is confirmed, and the host can't be read.
    """
    started = time.monotonic()
    confirmation = confirmation or _Confirmation(say)
    patience = host.timeouts.reboot
    # One reading that hangs, on a host that has just come up, must not take all the time in which it is waited for.
    seconds = min(host.timeouts.api, max(SHORT_SECONDS, host.timeouts.rollback / 3))
    extended = False
    last_told = started
    last_problem = "it went down and nothing answers"
    last_refusal: HomelabError | None = None
    while True:
        try:
            reading = _reading_of_another_boot(host, old_boot_id, seconds, confirmation)
            if reading is not None:
                return reading
            last_problem, last_refusal = "it answers, but has not rebooted", None
        except UnreachableError as error:
            confirmation.failed(error)
            last_problem, last_refusal = error.found, None
        except HomelabError as error:
            confirmation.failed(error)
            # On its way down or up: root's keys lie in /etc/pve, which isn't there yet; the initramfs asks for a disk's
            # passphrase over SSH, with a host key of its own; the shutdown ended a command of the script.
            if last_refusal is None:
                say(f"{host.address} answers, but can't be read yet: {error.found}")
            last_problem, last_refusal = error.found, error
        if time.monotonic() - last_told >= TELL_SECONDS:
            last_told = time.monotonic()
            (on_wait or say)(f"waiting for the host: {last_told - started:.0f} s")
        if time.monotonic() - started > patience:
            if extended or confirmation.boot:
                raise last_refusal or _never_back(host, last_problem, time.monotonic() - started)
            extended = True
            patience = host.timeouts.boot
            say(
                f"{host.address} is not back after {host.timeouts.reboot} s ({last_problem}); if it only lacks its "
                f"network, it ends this boot {host.timeouts.rollback} s after its start and reboots by itself into "
                "what it had before: waiting for that"
            )
        time.sleep(RETRY_SECONDS if last_refusal is None else REFUSED_SECONDS)


def _reading_of_another_boot(
    host: Host, old_boot_id: str | None, seconds: float, confirmation: _Confirmation
) -> facts.HostFacts | None:
    """A reading, or None while the host runs the old boot, after having waited for the connection's end.

    A host that goes down isn't read, but asked for its boot id only; if it has none, the confirmation's answer has it.
    """
    session = Session(host)
    session.connect(anew=True)  # the earlier connection may be to the old boot, and not show it
    if session.boot_id(seconds) != old_boot_id or old_boot_id is None:
        reading = confirmation.read(session, old_boot_id, seconds)
        if reading is not None:
            return reading
    session.ended(GOING_DOWN_SECONDS)
    return None


class _Confirmation:
    """Confirms a host's boot, then reads the host: in this order, as the trial's time goes on while a host is
    read.

    `boot`: the id of the confirmed boot; empty: none yet.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.boot = ""
        self._say = say
        self._reading = False
        self._tries = 0

    def read(self, session: Session, old_boot_id: str | None, seconds: float) -> facts.HostFacts | None:
        """Confirms the boot and returns a reading; None: the host runs the old boot, or restarted between the
        confirmation and the reading, or is about to.

        :param old_boot_id: a boot that isn't to be confirmed.
        :param seconds: for the reading.
        :raises HomelabError: as `Session.run`.
        """
        wanted = confirm_boot.Wanted(unless=old_boot_id or "")
        answer = session.ask("apply", "confirm_boot", wanted, CONFIRM_SECONDS)
        if answer["boot"] == old_boot_id:
            return None
        if answer["judged"]:
            self._say(answer["judged"])
            session.ask("apply", "confirm_boot", dataclasses.replace(wanted, judged_told=True), CONFIRM_SECONDS)
        if answer["confirmed"] != self.boot:
            self.boot, self._tries = answer["confirmed"], 0
        self._reading = True
        reading = session.read(lspci=True, kernel_log=True, seconds=seconds)
        self._reading = False
        if reading.rolled_back or reading.rolling_back or reading.boot_id == self.boot:
            return reading
        return None

    def failed(self, error: HomelabError) -> None:
        """Counts an attempt that failed: the script did, or there was no connection, or it was lost.

        :raises HomelabError: the boot can't be confirmed for a reason that stays, or READ_TRIES readings of a confirmed
            boot failed.
        """
        if error.wanted.startswith(NOT_CONFIRMED):
            raise error
        if not self._reading:
            return
        self._reading = False
        self._tries += 1
        if self.boot and self._tries >= READ_TRIES:
            raise HomelabError(
                wanted="a host read whose boot is confirmed",
                found=f"{self._tries} times: {error.found}",
                why=f"so it isn't known whether it has what was configured. Boot {self.boot} is confirmed: the host "
                "doesn't take it back",
                next="log in, and see what hangs (`lspci`, `dmesg`, a disk); then run `pulumi up` again",
            ) from None


def _never_back(host: Host, last_problem: str, waited: float) -> UnreachableError:
    return UnreachableError(
        wanted=f"{host.address} back after its reboot",
        found=f"after {waited:.0f} s: {last_problem}",
        why="its kernel may hang. If its boot was on trial, the host's default is what it had before",
        next="look at its screen or its remote console, then switch it off and on: it starts with its default; "
        "when it is back, run `pulumi up --refresh`",
    )
