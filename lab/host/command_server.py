"""Runs simulated commands in forks of one process that has their modules: `python -I -S command_server.py LISTENER` (lab.commands).

A Python that starts and imports what a command needs takes ten times as long as the command's own work. Here a command runs in a fork,
with the streams of whoever asks (command.pl), and with its arguments, environment, folder, umask and ignored signals, which /proc
has of a process that waits. It is a process group of its own. Signals that reach the asking process are passed on to the group, and
when that process is killed, so is the group: for scripts, `timeout` and kill the one stands for the other.

A fork that has done its command takes the next one of the same system: to make one, with the pages that each copies, costs four times what
a small command does. It ends instead where its command has left a process, which would be in one group with the next command, and where
it was sent a signal. Who ends a system finds its forks by the commands that they do (lab/processes.py); such a fork may do the next one
when it is killed, so that must be one of the same system.

The server ends with its stdin, which whoever started it holds open (lab.commands).
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import itertools
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from typing import NoReturn

#: Imported for the forks: what functions of the commands import for themselves.
PRELOADED = (shutil, subprocess)
#: How a fork's process is called in /proc/PID/comm, before the pid of who asked: lab.processes takes it for that one's child.
MARK = "lab/"
#: Signals that a client passes on.
_PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
#: What a client, or the server, says of a command at most.
_LONGEST = 4096
#: How many commands a fork does, as nothing looks for garbage in it, and how many forks wait for one.
_COMMANDS_EACH, _WAITING = 200, 8
#: Lines of /proc/PID/status.
_ABOUT = {name: re.compile(rb"^%s:\t(\w+)$" % name.encode(), re.M) for name in ("Umask", "SigIgn")}


class _ServerEnds(BaseException):
    """SIGTERM: nothing that a command catches."""


def _end_server(number: int, frame: object) -> NoReturn:
    raise _ServerEnds


class _Fork:
    """A fork that does commands of one system, which is the LAB_STATE of those who ask.

    Args:
        pid: its process, and process group.
        channel: by which it is told of commands, until this is closed.
        system: whose commands it does.
    """

    def __init__(self, pid: int, channel: socket.socket, system: bytes) -> None:
        self.pid = pid
        self.channel = channel
        self.system = system
        #: To the client whose command it does now.
        self.connection: socket.socket | None = None


class Server:
    """Accepts on a socket that listens already.

    A client sends its streams, and as text how many words of its command line come before the command's own; what comes in their place, each
    after a zero byte.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._forks: dict[int, _Fork] = {}  # pid -> itself
        self._busy: dict[int, _Fork] = {}  # descriptor of the client's connection -> its fork
        self._waiting: list[_Fork] = []
        self._poll = select.poll()
        self._woken, waking = os.pipe()
        os.set_blocking(waking, False)
        # What a fork says that has done a command: its pid, and a status as wait(2) has it.
        self._done, self._saying = os.pipe()
        os.set_blocking(self._done, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        for descriptor in (0, self._woken, self._done, listener.fileno()):
            self._poll.register(descriptor, select.POLLIN)

    def serve(self) -> None:
        """Until stdin ends, or SIGTERM."""
        signal.signal(signal.SIGTERM, _end_server)
        try:
            self._serve()
        except _ServerEnds:
            sys.exit()
        finally:
            for pid in list(self._forks):
                _end(pid, signal.SIGKILL)

    def _serve(self) -> None:
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == 0:
                    return
                if descriptor == self._woken:
                    os.read(self._woken, 4096)
                    self._reap()
                elif descriptor == self._done:
                    self._hear()
                elif descriptor == self._listener.fileno():
                    self._accept()
                elif descriptor in self._busy:
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
                fork = self._fork(_environment(client).get(b"LAB_STATE", b""))
                socket.send_fds(fork.channel, [struct.pack("i", client) + asked], streams)
                fork.connection = connection
                self._busy[connection.fileno()] = fork
                self._poll.register(connection, select.POLLIN)
            except OSError:  # no process can be had, or it was just killed with its system
                connection.close()
        for stream in streams:
            os.close(stream)

    def _fork(self, system: bytes) -> _Fork:
        self._reap()  # none that has ended is waiting
        for fork in reversed(self._waiting):
            if fork.system == system:
                self._waiting.remove(fork)
                return fork
        gc.freeze()  # what is here is nothing for a fork's collector to look through, and so to copy
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)  # until the fork does with them what its client would
        try:
            pid = os.fork()
            if pid == 0:
                _become(theirs, self._saying)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        _lead(pid)
        theirs.close()
        self._forks[pid] = _Fork(pid, ours, system)
        return self._forks[pid]

    def _pass_on(self, descriptor: int) -> None:
        """Signals that came to the client; its end, which is the command's."""
        fork = self._busy[descriptor]
        try:
            signals = fork.connection.recv(64, socket.MSG_DONTWAIT) if fork.connection else b""
        except BlockingIOError:
            return  # what was to be read was another's, whose descriptor this one has now
        except ConnectionError:
            signals = b""
        fork.channel.close()  # the signals may reach it once the command is done
        for number in signals:
            _end(fork.pid, signal.Signals(number))
        if not signals:
            _end(fork.pid, signal.SIGKILL)
            self._poll.unregister(descriptor)
            del self._busy[descriptor]

    def _hear(self) -> None:
        """Take what forks have said."""
        with contextlib.suppress(BlockingIOError):
            while said := os.read(self._done, struct.calcsize("2i")):
                pid, status = struct.unpack("2i", said)
                fork = self._forks[pid]
                self._tell(fork, status)
                if fork.channel.fileno() >= 0:
                    self._waiting.append(fork)
        for fork in self._waiting[:-_WAITING]:
            self._waiting.remove(fork)
            fork.channel.close()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._hear()
            if fork := self._forks.pop(pid, None):
                fork.channel.close()
                if fork in self._waiting:
                    self._waiting.remove(fork)
                self._tell(fork, status)

    def _tell(self, fork: _Fork, status: int) -> None:
        """The client, unless it was told."""
        if fork.connection:
            if self._busy.pop(fork.connection.fileno(), None):
                self._poll.unregister(fork.connection)
            _answer(fork.connection, status)
            fork.connection = None


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


def _become(channel: socket.socket, saying: int) -> NoReturn:
    """The fork: one command after the other, until it is told of no more, or has left something of one."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _lead(0)
        gc.disable()  # it ends before there is much to collect
        # What it leaves when its client is killed is nobody's who asked for anything (lab/processes.py).
        os.register_at_fork(after_in_child=lambda: _take_name("python"))
        for number in range(_COMMANDS_EACH):
            _let_go(channel.fileno(), saying)
            if number:
                os.write(saying, struct.pack("2i", os.getpid(), (status & 255) << 8))
            asked, streams, _, _ = socket.recv_fds(channel, _LONGEST, 3)
            if not asked:
                break
            client = struct.unpack_from("i", asked)[0]
            words = _words(client, asked[struct.calcsize("i") :])
            for to, stream in enumerate(streams):
                os.dup2(stream, to)
                os.close(stream)
            status = _status(client, words)
            if _has_company():
                break
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status & 255)


def _let_go(*kept: int) -> None:
    """Nothing of a command is kept: its streams, what it opened, its folder, the signals that it ignores, its name."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    for before, after in itertools.pairwise((2, *sorted(kept), os.sysconf("SC_OPEN_MAX"))):
        os.closerange(before + 1, after)
    # What couldn't be written goes nowhere, not to the next one's streams.
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
    os.chdir("/")
    _take_signals(0)
    _take_name("lab")


def _has_company() -> bool:
    """Whether the command has left a process in this fork's group, or a thread."""
    group = os.getpid()
    try:
        # For a moment the server's: a signal that misses it now is one to a command that is done.
        os.setpgid(0, os.getpgid(os.getppid()))
        os.killpg(group, 0)
    except ProcessLookupError:
        os.setpgid(0, 0)
        return threading.active_count() > 1
    return True


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
