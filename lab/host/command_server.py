"""Runs simulated commands in forks of one process that has their modules: `python -I -S command_server.py LISTENER`.

A Python that starts and imports what a command needs takes ten times as long as the command's own work. Here a command is a fork,
with the streams of whoever asks (command.pl), and with its arguments, environment, folder, umask and ignored signals, which /proc
has of a process that waits; so is the file for apt's state (APT::Status-Fd). It is a process group of its own. Signals that reach the asking process are passed on to the group, and
when that process is killed, so is the group: for scripts, `timeout` and kill the one stands for the other.

The server ends with its stdin, which whoever started it holds open (lab.commands).
"""

from __future__ import annotations

import gc
import importlib
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

#: Imported for the forks: what functions of the commands import for themselves.
PRELOADED = (shutil, subprocess)
#: How a fork's process is called in /proc/PID/comm, before the pid of who asked: lab.processes takes it for that one's child.
MARK = "lab/"
#: By this option of apt's a command is told of a descriptor beside its three streams.
_STATUS_FD = re.compile(r"(?i)(?:-o)?APT::Status-Fd=(\d+)")


class Server:
    """Accepts on a socket that listens already.

    Args:
        listener: the socket.
        prepare: is told a command's words before each fork; what it imports, that fork and all that follow have.
        run: the command itself, in the fork; returns its exit status.

    A client sends its streams, and as text how many words of its command line come before the command's own. What follows that, each
    after a zero byte, are words that come before these.
    """

    def __init__(
        self,
        listener: socket.socket,
        prepare: Callable[[list[str]], object],
        run: Callable[[list[str]], int],
    ) -> None:
        self._listener = listener
        self._prepare = prepare
        self._run = run
        self._connections: dict[int, socket.socket] = {}
        self._commands: dict[int, int] = {}  # descriptor of the connection -> pid of the fork
        self._poll = select.poll()
        self._woken, waking = os.pipe()
        os.set_blocking(waking, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        for descriptor in (0, self._woken, listener.fileno()):
            self._poll.register(descriptor, select.POLLIN)

    def serve(self) -> None:
        """Until stdin ends, or SIGTERM."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        try:
            self._serve()
        finally:
            for asked in list(self._commands):
                self._end(asked, signal.SIGKILL)

    def _serve(self) -> None:
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == 0:
                    return
                if descriptor == self._woken:
                    os.read(self._woken, 4096)
                    self._reap()
                elif descriptor == self._listener.fileno():
                    self._accept()
                elif descriptor in self._connections:
                    self._pass_on(descriptor)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        client, user, _ = struct.unpack("3i", credentials)
        asked, streams, _, _ = socket.recv_fds(connection, 4096, 3)
        first, *own = os.fsdecode(asked).split("\0")
        line = _fields(client, "cmdline") if user == os.geteuid() and first.isdecimal() else []
        words = [*own, *line[int(first) :]] if line else []
        if not words or len(streams) != 3:
            connection.close()  # killed before it asked, or nobody of ours
        else:
            self._prepare(words)
            gc.freeze()  # what is here is nothing for a fork's collector to look through, and so to copy
            pid = os.fork()
            if pid == 0:
                _become(client, streams, words, lambda: self._run(words))
            _lead(pid)
            self._poll.register(connection, select.POLLIN)
            self._connections[connection.fileno()] = connection
            self._commands[connection.fileno()] = pid
        for stream in streams:
            os.close(stream)

    def _pass_on(self, descriptor: int) -> None:
        """Signals that came to the client; its end, which is the command's."""
        try:
            signals = self._connections[descriptor].recv(64)
        except ConnectionError:
            signals = b""
        for number in signals:
            self._end(descriptor, signal.Signals(number))
        if not signals:
            self._end(descriptor, signal.SIGKILL)
            self._poll.unregister(descriptor)

    def _end(self, descriptor: int, number: signal.Signals) -> None:
        try:
            os.killpg(self._commands[descriptor], number)
        except ProcessLookupError:
            return  # it has ended; its status is about to be sent

    def _reap(self) -> None:
        asked = {pid: descriptor for descriptor, pid in self._commands.items()}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in asked:
                self._answer(asked[pid], status)

    def _answer(self, descriptor: int, status: int) -> None:
        del self._commands[descriptor]
        connection = self._connections.pop(descriptor)
        try:
            self._poll.unregister(descriptor)
            connection.sendall(struct.pack("I", status))
        except (KeyError, ConnectionError):
            pass  # noqa: S110  # the client was killed: nobody waits for an answer
        finally:
            connection.close()


def _fields(process: int, name: str) -> list[str]:
    try:
        with open(f"/proc/{process}/{name}", "rb") as file:  # noqa: PTH123
            return [os.fsdecode(one) for one in file.read().split(b"\0")[:-1]]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _lead(process: int) -> None:
    """Both the server and the fork do it, so that neither goes on before it is done."""
    try:
        os.setpgid(process, process)
    except (ProcessLookupError, PermissionError):
        return  # ended, or another program already: it has done so itself


def _prepare(words: list[str]) -> None:
    """Import a command's module, for this fork and those that follow. What fails here fails in the fork, and is told there."""
    try:
        module = importlib.import_module("host.run").module_of(words)
        getattr(module, "preload", lambda: None)()
    except Exception:
        return


def _become(client: int, streams: list[int], words: list[str], run: Callable[[], int]) -> NoReturn:
    """The fork: the command, in every respect that the client's process has."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for one in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(one, signal.SIG_DFL)
        _lead(0)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        _take_over(client, words)
        with open("/proc/self/comm", "w") as comm:  # noqa: PTH123
            comm.write(f"{MARK}{client}")
        _resemble(client)
        status = run()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except BrokenPipeError:
            status = 120  # as Python itself, at its end
        finally:
            os._exit(status & 255)


def _take_over(client: int, words: list[str]) -> None:
    """The file that apt is to write its state to, which is a descriptor of the client's."""
    for number in (int(found[1]) for word in words if (found := _STATUS_FD.fullmatch(word))):
        try:
            stream = os.open(f"/proc/{client}/fd/{number}", os.O_WRONLY | os.O_APPEND)
        except OSError:
            continue  # it isn't open there either
        if stream != number:
            os.dup2(stream, number)
            os.close(stream)


def _resemble(client: int) -> None:
    """Environment, umask, ignored signals, folder and Python's own streams."""
    environment = dict(one.partition("=")[::2] for one in _fields(client, "environ"))
    os.environ.clear()
    os.environ.update(environment)
    with open(f"/proc/{client}/status") as file:  # noqa: PTH123
        about = dict(line.rstrip().partition(":\t")[::2] for line in file)
    os.umask(int(about["Umask"], 8))
    ignored = int(about["SigIgn"], 16)
    for one in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if ignored >> (one - 1) & 1:
            signal.signal(one, signal.SIG_IGN)
    os.chdir(f"/proc/{client}/cwd")
    sys.stdin = open(0, errors=sys.stdin.errors, closefd=False)  # noqa: PTH123, SIM115
    sys.stdout = open(1, "w", errors=sys.stdout.errors, closefd=False)  # noqa: PTH123, SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: PTH123, SIM115


def _run(words: list[str]) -> int:
    gc.disable()  # a command ends before there is much to collect
    sys.argv[1:] = words
    return int(importlib.import_module("host.run").main())


if __name__ == "__main__":
    sys.path.append(__file__.rpartition("/host/")[0])
    Server(socket.socket(fileno=int(sys.argv[1])), _prepare, _run).serve()
