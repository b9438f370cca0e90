"""Runs simulated commands in forks of one process that has their modules: `python -I -S command_server.py LISTENER` (lab.commands).

A Python that starts and imports what a command needs takes ten times as long as the command's own work. Here a command runs in a fork,
with the streams of whoever asks (command.pl), and with its arguments, environment, folder, umask and ignored signals, which /proc
has of a process that waits. It is a process group of its own. Signals that reach the asking process are passed on to the group, and
when that process is killed, so is the group: for scripts, `timeout` and kill the one stands for the other.

The server ends with its stdin, which whoever started it holds open (lab.commands).
"""

from __future__ import annotations

import contextlib
import errno
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
from typing import NoReturn

#: Imported for the forks: what functions of the commands import for themselves.
PRELOADED = (shutil, subprocess)
#: How a fork's process is called in /proc/PID/comm, before the pid of who asked: lab.processes takes it for that one's child.
MARK = "lab/"
#: Signals that a client passes on.
_PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
#: What a client, or the server, says of a command at most.
_LONGEST = 4096
#: Lines of /proc/PID/status.
_ABOUT = {name: re.compile(rb"^%s:\t(\w+)$" % name.encode(), re.M) for name in ("Umask", "SigIgn")}


class _ServerEnds(BaseException):
    """SIGTERM: nothing that a command catches."""


def _end_server(number: int, frame: object) -> NoReturn:
    raise _ServerEnds


class Server:
    """Accepts on a socket that listens already.

    A client sends its streams, and as text how many words of its command line come before the command's own; what comes in their place, each
    after a zero byte.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._clients: dict[int, socket.socket] = {}  # fork's pid -> the connection to its client
        self._forks: dict[int, int] = {}  # descriptor of such a connection -> the fork's pid
        self._poll = select.poll()
        self._woken, waking = os.pipe()
        os.set_blocking(waking, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        for descriptor in (0, self._woken, listener.fileno()):
            self._poll.register(descriptor, select.POLLIN)

    def serve(self) -> None:
        """Until stdin ends, or SIGTERM."""
        signal.signal(signal.SIGTERM, _end_server)
        try:
            self._serve()
        except _ServerEnds:
            sys.exit()
        finally:
            for pid in self._clients:
                _end(pid, signal.SIGKILL)

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
                elif descriptor in self._forks:
                    self._pass_on(descriptor)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        client, user, _ = struct.unpack("3i", credentials)
        asked, streams, _, _ = socket.recv_fds(connection, _LONGEST, 3)
        words = _words(client, asked) if user == os.geteuid() else []
        if not words or len(streams) != 3:
            connection.close()  # killed before it asked, or nobody of ours
        else:
            _prepare(words)
            try:
                pid = _fork(client, words, streams)
                self._clients[pid], self._forks[connection.fileno()] = connection, pid
                self._poll.register(connection, select.POLLIN)
            except OSError:  # no process can be had
                connection.close()
        for stream in streams:
            os.close(stream)

    def _pass_on(self, descriptor: int) -> None:
        """Signals that came to the client; its end, which is the command's."""
        pid = self._forks[descriptor]
        try:
            signals = self._clients[pid].recv(64, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return  # what was to be read was another's, whose descriptor this one has now
        except ConnectionError:
            signals = b""
        for number in signals:
            _end(pid, signal.Signals(number))
        if not signals:
            _end(pid, signal.SIGKILL)
            self._poll.unregister(descriptor)
            del self._forks[descriptor]

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if connection := self._clients.pop(pid, None):
                if self._forks.pop(connection.fileno(), None):
                    self._poll.unregister(connection)
                _answer(connection, status)


def _answer(connection: socket.socket, status: int) -> None:
    with connection, contextlib.suppress(ConnectionError):  # the client was killed: nobody waits for an answer
        connection.sendall(struct.pack("I", status))


def _end(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended; its status is about to be sent
        os.killpg(pid, number)


def _read(process: int, name: str) -> bytes:
    """A file of /proc; not as an object of Python's, which asks the kernel for more than its text. Nothing where the process has ended."""
    try:
        descriptor = os.open(f"/proc/{process}/{name}", os.O_RDONLY)
    except (FileNotFoundError, ProcessLookupError):
        return b""
    try:
        text = b""
        while more := os.read(descriptor, 1 << 16):
            text += more
        return text
    except ProcessLookupError:
        return b""
    finally:
        os.close(descriptor)


def _environment(client: int) -> dict[bytes, bytes]:
    return dict(one.partition(b"=")[::2] for one in _read(client, "environ").split(b"\0")[:-1])


def _words(client: int, asked: bytes) -> list[str]:
    """A command with its arguments; nothing where who asked has ended."""
    first, *own = asked.split(b"\0")
    line = _read(client, "cmdline").split(b"\0")[:-1] if first else []
    return [os.fsdecode(word) for word in (*own, *line[int(first) :])] if line else []


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


def _fork(client: int, words: list[str], streams: list[int]) -> int:
    """A fork that does a client's command, in a process group of its own; its process."""
    gc.freeze()  # what is here is nothing for a fork's collector to look through, and so to copy
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)  # until the fork does with them what its client would
    try:
        pid = os.fork()
        if pid == 0:
            _become(client, words, streams)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    _lead(pid)
    return pid


def _become(client: int, words: list[str], streams: list[int]) -> NoReturn:
    """The fork: the command, and its end."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _lead(0)
        gc.disable()  # it ends before there is much to collect
        # What it leaves when its client is killed is nobody's who asked for anything (lab/processes.py).
        os.register_at_fork(after_in_child=lambda: _take_name("python"))
        for to, stream in enumerate(streams):
            os.dup2(stream, to)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        status = _status(client, words)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status & 255)


def _status(client: int, words: list[str]) -> int:
    """Do a command as the client's process would, in every respect, and return its exit status."""
    try:
        ignored = _resemble(client)
    except OSError:
        return 137  # the client was killed before it was answered
    status = 1
    try:
        _take_name(f"{MARK}{client}")
        _take_signals(ignored)
        _take_streams()
        status = _run(words)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        status = 120  # as Python itself, at its end
    except OSError:
        pass  # noqa: S110  # to a full disk: the command's own status says it
    return status


def _take_name(name: str) -> None:
    comm = os.open("/proc/self/comm", os.O_WRONLY)
    os.write(comm, name.encode())
    os.close(comm)


def _resemble(client: int) -> int:
    """Environment, umask and folder; return the signals that it ignores, as bits.

    Raises:
        OSError: it has ended.
    """
    os.environb.clear()
    os.environb.update(_environment(client))
    os.chdir(f"/proc/{client}/cwd")
    about = _read(client, "status")
    umask, ignored = (_ABOUT[name].search(about) for name in ("Umask", "SigIgn"))
    if umask is None or ignored is None:
        raise OSError(errno.ESRCH, "it has ended")  # a process that is waited for has no umask any more
    os.umask(int(umask[1], 8))
    return int(ignored[1], 16)


def _take_signals(ignored: int) -> None:
    """The signals that the client ignores, as bits; the others as they are in a Python that starts."""
    for one in _PASSED_ON:
        usual = signal.default_int_handler if one == signal.SIGINT else signal.SIG_DFL
        signal.signal(one, signal.SIG_IGN if ignored >> (one - 1) & 1 else usual)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)


def _take_streams() -> None:
    """Python's own streams, on the client's."""
    sys.stdin = open(0, errors=sys.stdin.errors, closefd=False)  # noqa: PTH123, SIM115
    sys.stdout = open(1, "w", errors=sys.stdout.errors, closefd=False)  # noqa: PTH123, SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: PTH123, SIM115


def _run(words: list[str]) -> int:
    sys.argv[1:] = words
    return int(importlib.import_module("host.run").main())


if __name__ == "__main__":
    sys.path.append(__file__.rpartition("/host/")[0])
    Server(socket.socket(fileno=int(sys.argv[1]))).serve()
