"""Asks the agent on a host over SSH, and runs commands there, where pulumi-command can't, as on refresh.

It is imported on first use (homelab/later.py): a run that has nothing to read doesn't pay for asyncssh.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any

import asyncssh

from homelab.cards import resolving
from homelab.errors import (
    HomelabError,
    NoPythonError,
    NotConfirmedError,
    NotStartedError,
    RefusedError,
    UnreachableError,
)
from homelab.facts import host as facts
from homelab.facts.kernel_log import filter_of_lines
from homelab.remote import agent, loop, scripts
from homelab.remote.logins import COMMANDS, login_of, unreachable
from homelab.settings import Host
from remote_scripts.both import read_host
from remote_scripts.tools.errors import NotConfirmed, NotStarted
from remote_scripts.tools.places import PYTHON
from remote_scripts.tools.state import limit_of

Say = Callable[[str], None]

# The message of a step that failed (remote_scripts/tools/errors.py).
_MESSAGE = re.compile(
    r"^wanted: (?P<wanted>.*?)\nfound:  (?P<found>.*?)\nwhy:    (?P<why>.*?)\nnext:   (?P<next>.*?)\s*\Z",
    re.DOTALL | re.MULTILINE,
)

# What connects standard input and output to a port of the host, on which it also runs for who isn't root.
_BY_BASH = "bash -c 'exec 3<>/dev/tcp/127.0.0.1/{} && cat >&3 && cat <&3'"
# The begin of the line of layers/run_guard.py that names the run it waits for.
ANOTHER_RUN = "another run is at work: "


class Session:
    """A host over this process's connection to it."""

    def __init__(self, host: Host, timeout: float | None = None) -> None:
        """:param timeout: seconds until there is a connection; by default the host's `timeouts.connect`."""
        self._host = host
        self._timeout = timeout or host.timeouts.connect

    def run(self, verb: str, script: str, seconds: float = 0) -> str:
        """Runs commands in a shell and returns their output; bytes that aren't UTF-8 are U+FFFD in it.

        :param seconds: how long it may take; 0, here and in what follows: as long as the host's `timeouts.api` says.
        :raises HomelabError: the script failed (its own message), or sudo did; or the host shows another host key, or
            refuses the login.
        :raises UnreachableError: the host doesn't answer, or the connection was lost meanwhile.
        """
        return self._run(scripts.command(verb, self._host.ssh.user), verb, script, seconds)

    def ask(
        self,
        verb: str,
        layer: str,
        wanted: Any,
        seconds: float = 0,
        on_line: Say | None = None,
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
        text = agent.asked(verb, agent.request(layer, wanted, seconds=limit, ctid=ctid, proxy=proxy))
        return scripts.answer(self._run(None, f"{verb} {layer}", text, limit or seconds, on_line))

    def plan(self, questions: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
        """What layers would change, in the order of the questions: one after the other by one agent, whose way to the
        host and start take longer than a plan.

        :param questions: each layer's name with its `Wanted`.
        :raises HomelabError: as `run`; of the first that refuses.
        """
        text = agent.asked("plan", *(agent.request(layer, wanted) for layer, wanted in questions))
        layers, seconds = ", ".join(layer for layer, _ in questions), self._host.timeouts.api * len(questions)
        lines = self._run(None, f"plan {layers}", text, seconds).strip().split("\n")
        return [scripts.answer(line) for line in lines[-len(questions) :]]

    def put_agent(self, owner: str, seconds: float) -> None:
        """Puts this program's agent on the host.

        :param owner: the stack's folder there.
        :raises HomelabError: as `run`; or the host has no Python that will do.
        """
        self._run(agent.command_to_put(self._host.ssh.user), "put the agent", agent.put(owner), seconds)

    def _run(self, command: str | None, verb: str, script: str, seconds: float, on_line: Say | None = None) -> str:
        """What a command prints that takes `script` from standard input; other arguments and errors as of `ask`.

        :param command: None: the agent's, which may ask for the agent itself.
        """
        seconds = seconds or self._host.timeouts.api
        try:
            work = self._exchange(command, script, seconds, on_line)
            wanted = {"read": "to be read", "plan": "to say what `pulumi up` changes"}.get(verb.split()[0], "to answer")
            limit = f"a busy host takes its time, a hanging one is given up after {seconds:.0f} s; Ctrl-C ends it"
            status, output, log = loop.run(work, f"{self._host.address} {wanted}: {limit}")
        except (OSError, asyncssh.Error) as error:
            raise _connection_lost(self._host, error, verb, seconds) from error
        if status != 0:
            raise _failed(verb, _decoded(output), log, status)
        return _decoded(output)

    async def _exchange(
        self, command: str | None, script: str, seconds: float, on_line: Say | None = None
    ) -> tuple[int, bytes, str]:
        """Exit status, answer, log.

        :raises ConnectionResetError: the connection ended before the command did.
        """
        async with self._process(command, script, seconds, on_line) as (process, log, _):
            output = b"".join([line async for line in _output(process)])
            log_text = await log
            await process.wait_closed()
            if process.exit_status is None:
                raise ConnectionResetError
            return process.exit_status, output, log_text

    @asynccontextmanager
    async def _process(
        self, command: str | None, script: str, seconds: float, on_line: Say | None
    ) -> AsyncIterator[tuple[asyncssh.SSHClientProcess[bytes], asyncio.Task[str], asyncio.Timeout]]:
        """A command, as soon as it is its turn, with its log and the end of its time. What it does is sent to it: so
        where a connection turns out to have ended, or to take no more commands (sshd's MaxSessions), one more is opened
        for it. Other arguments as of `_run`.

        :param seconds: after that it is ended: a host that goes down may keep a connection open, and answer its
            keepalives, without ever running the script.
        """
        for tries_left in reversed(range(COMMANDS + 2)):
            connection = await login_of(self._host).opened(self._host, self._timeout)
            has_waited = connection.turns.locked()
            connection.commands += 1
            process = None
            try:
                async with connection.turns, asyncio.timeout(seconds) as limit:
                    started = command or agent.command_in_memory(self._host.ssh.user)
                    process = await connection.ssh.create_process(started, encoding=None)
                    _send(process, script, ends=command is not None)
                    log = _begun(_heard(process.stderr, on_line))
                    yield process, log, limit
                    return
            except (OSError, asyncssh.Error) as error:
                login_of(self._host).leave(connection)  # also one that didn't answer in time: it may be going down
                if process is not None:
                    raise
                if await _has_ended(connection.ssh):
                    # Where this command has waited, the host may be another run's by now.
                    if has_waited or tries_left <= COMMANDS:
                        raise ConnectionResetError from error
                elif not tries_left or not isinstance(error, asyncssh.ChannelOpenError):
                    raise
            finally:
                if process is not None:
                    process.channel.abort()  # what it still prints is of no use; others' commands go on
                connection.commands -= 1
                connection.end_if_left()

    def exchange(self, port: int, request: str, *, changes: bool) -> bytes | None:
        """What a server that listens on the host's own 127.0.0.1 answers, until it ends the connection; empty where it
        said nothing.

        :param request: ASCII.
        :param changes: the request changes something; of these, CHANGES are under way at a time.
        :returns: None: nobody listens there.
        :raises HomelabError: as `run`.
        """
        seconds = self._host.timeouts.api
        try:
            return loop.run(self._answer(port, request, seconds, changes=changes))
        except (OSError, asyncssh.Error) as error:
            raise _connection_lost(self._host, error, f"127.0.0.1:{port}", seconds) from error

    async def _answer(self, port: int, request: str, seconds: float, *, changes: bool) -> bytes | None:
        connection = await login_of(self._host).opened(self._host, self._timeout)
        async with connection.changes if changes else nullcontext():
            connection.commands += 1
            try:
                async with asyncio.timeout(seconds):
                    reader, writer = await connection.ssh.open_connection("127.0.0.1", port, encoding=None)
                    try:
                        writer.write(request.encode("ascii"))
                        answer: bytes = await reader.read()
                        return answer
                    finally:
                        writer.channel.abort()
            except TimeoutError:
                login_of(self._host).leave(connection)  # as in `_process`
                raise
            except asyncssh.ChannelOpenError as error:
                if await _has_ended(connection.ssh):
                    raise ConnectionResetError from error
                if error.code == asyncssh.OPEN_CONNECT_FAILED:
                    return None
                if error.code != asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
                    raise
            finally:
                connection.commands -= 1
                connection.end_if_left()
            # sshd forbids forwarding (AllowTcpForwarding, PermitOpen): a command can connect.
            _, output, log = await self._exchange(_BY_BASH.format(port), request, seconds)
        return None if "Connection refused" in log else output

    def boot_id(self, seconds: float) -> str:
        """The running boot's id; empty where the kernel's file can't be read.

        :raises HomelabError: as `run`.
        """
        output = self.run("read_boot", 'echo "$(<"${HOMELAB_ROOT:-}/proc/sys/kernel/random/boot_id")"\n', seconds)
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

        async def connected() -> None:
            login = login_of(self._host)
            if anew:
                login.leave()
            await login.opened(self._host, self._timeout)

        loop.run(connected())

    async def keep(
        self,
        layer: str,
        wanted: Any,
        on_answer: Callable[[], None],
        beat: float,
        words: asyncio.Queue[str] | None = None,
        on_line: Say | None = None,
    ) -> None:
        """Asks the agent, as `ask` does, for something that goes on after the answer as long as it gets signs
        of life; returns when it or the connection has ended.

        :param on_answer: called once it has answered.
        :param beat: seconds between two signs of life.
        :param words: words that are sent to it meanwhile, a line each.
        :param on_line: called with each line that comes after the answer.
        :raises RefusedError: it failed instead of answering, or waited for another run until the connection was lost.
        :raises HomelabError: as `connect`; UnreachableError: the connection was lost before that.
        """
        log_lines: list[str] = []
        seconds = self._host.timeouts.api
        words = words or asyncio.Queue()
        script, meanwhile = agent.asked("hold", agent.request(layer, wanted)), list[asyncio.Task[Any]]()

        async def live(process: asyncssh.SSHClientProcess[bytes]) -> None:
            while True:
                word = ""
                with suppress(TimeoutError):
                    word = await asyncio.wait_for(words.get(), beat)
                _send(process, f"{word}\n")

        try:
            async with self._process(None, script, seconds, log_lines.append) as (process, log, limit):
                output = b""  # a login may print something of its own before
                async for line in _output(process):
                    if _is_answer(line):
                        break
                    output += line
                else:
                    log_text = await log
                    await process.wait_closed()
                    failed = _failed(f"hold {layer}", _decoded(output), log_text, process.exit_status or 1)
                    raise RefusedError(**failed.parts())
                limit.reschedule(None)
                on_answer()
                meanwhile = [_begun(_heard(process.stdout, on_line)), _begun(live(process))]
                # Not the end of its output, which never comes where the connection was lost.
                await process.wait_closed()
        except (OSError, TimeoutError, asyncssh.Error) as error:
            lost = _connection_lost(self._host, error, f"hold {layer}", seconds)
            other_run = next((line for line in log_lines if line.startswith(ANOTHER_RUN)), None)
            if other_run is not None:
                raise RefusedError(**{**lost.parts(), "found": f"{other_run}; {lost.found}"}) from error
            raise lost from error
        finally:
            for task in meanwhile:
                task.cancel()

    def read(
        self,
        *,
        guests: bool = False,
        kernel_log: bool = False,
        seconds: float = 0,
    ) -> facts.HostFacts:
        """One reading of the host; other arguments as of `read_host.Wanted` and `ask`.

        :param kernel_log: also reads the kernel's messages about cards.
        :raises HomelabError: as `ask`.
        """
        wanted = read_host.Wanted(
            guests=guests,
            acs=self._host.iommu.acs_override is not None,
            signs=filter_of_lines() if kernel_log else "",
        )
        reading = facts.parse(self.ask("read", "read_host", wanted, seconds))
        return resolving.choosing(reading, self._host.gpus)


async def _has_ended(connection: asyncssh.SSHClientConnection) -> bool:
    """Tells a connection that has ended from one that takes no more channels."""
    await asyncio.sleep(0)  # asyncssh says that it has ended a moment after what ends it
    return connection.is_closed()


def _begun(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    task = asyncio.create_task(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # it ends with the connection
    return task


def _send(process: asyncssh.SSHClientProcess[bytes], text: str, *, ends: bool = False) -> None:
    with suppress(OSError):  # it reads no more: its output and its status say why
        process.stdin.write(text.encode())
        if ends:
            process.stdin.write_eof()


async def _output(process: asyncssh.SSHClientProcess[bytes]) -> AsyncIterator[bytes]:
    """The lines that a command prints; where it asks for the agent, it gets it."""
    while line := await process.stdout.readline():
        if line.endswith(agent.WANTS_AGENT):
            _send(process, agent.itself())
        yield line


async def _heard(stream: asyncssh.SSHReader[bytes], on_line: Say | None) -> str:
    """Reads a stream to its end, and returns it.

    :param on_line: called with each line.
    """
    lines: list[str] = []
    while line := await stream.readline():
        lines.append(_decoded(line).removesuffix("\n"))
        if on_line:
            on_line(lines[-1])
    return "\n".join(lines)


def _decoded(output: bytes) -> str:
    return output.decode("utf-8", errors="replace")


def _is_answer(line: bytes) -> bool:
    try:
        scripts.answer(_decoded(line))
    except HomelabError:
        return False
    return True


# A shell's exit status for a program that isn't there, which it names.
_NOT_FOUND = 127
_PYTHON = PYTHON.split()[0]
# The exit status of this program's part on a host -> the error.
_BY_STATUS = {1: HomelabError, NotConfirmed.status: NotConfirmedError, NotStarted.status: NotStartedError}


def _failed(verb: str, output: str, log: str, status: int) -> HomelabError:
    message = _MESSAGE.search(output)
    if message:
        return _BY_STATUS.get(status, HomelabError)(**message.groupdict())
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
    return unreachable(host.address, host.ssh.port, error)


def read(host: Host, timeout: float | None = None, **options: Any) -> facts.HostFacts:
    """One reading. Arguments and errors as of `Session` and `Session.read`."""
    return Session(host, timeout).read(**options)
