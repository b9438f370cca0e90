"""Runs simulated commands in forks of one process that has their modules: `python -I -S command_server.py LISTENER`.

A Python that starts and imports what a command needs takes ten times as long as the command's own work. Here a command is a fork,
with the streams of whoever asks (command.pl), and with its arguments, environment, folder, umask and ignored signals, which /proc
has of a process that waits; so is the file for apt's state (APT::Status-Fd). It is a process group of its own. Signals that reach the asking process are passed on to the group, and
when that process is killed, so is the group: for scripts, `timeout` and kill the one stands for the other.

Half of all commands only look, for a millisecond: those the server does itself, since a fork takes several times as long. Then the
answer is what is to be printed, and perhaps the program of this machine that the asking process is to become. A hook of Python's makes
sure that such a command writes and starts nothing and waits for no lock: one that is about to is done anew in a fork.

The server ends with its stdin, which whoever started it holds open (lab.commands).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import importlib
import io
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
from typing import Any, NoReturn

#: Imported for the forks: what functions of the commands import for themselves.
PRELOADED = (shutil, subprocess)
#: How a fork's process is called in /proc/PID/comm, before the pid of who asked: lab.processes takes it for that one's child.
MARK = "lab/"
#: In the first number of an answer that isn't a status as wait(2) has it: all that is to be said follows.
_TOLD = 1 << 16
#: What a socket's buffer takes in any case: the server waits for nobody.
_LONGEST_ANSWER = 1 << 16
#: What a command that only looks doesn't do (sys.audit), besides opening a file for writing.
_DOING = frozenset({
    *("subprocess.Popen", "os.system", "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.kill", "os.killpg"),
    *("os.chmod", "os.chown", "os.chflags", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rename", "os.rmdir"),
    *("os.truncate", "os.utime", "os.setxattr", "os.removexattr", "os.lockf", "shutil.rmtree", "shutil.copyfile"),
    *("fcntl.flock", "fcntl.lockf", "fcntl.fcntl", "fcntl.ioctl", "socket.connect", "socket.bind", "signal.pthread_kill"),
})  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
#: Lines of /proc/PID/status.
_ABOUT = {name: re.compile(rb"^%s:\t(\w+)$" % name.encode(), re.M) for name in ("Umask", "SigIgn")}
#: By this option of apt's a command is told of a descriptor beside its three streams.
_STATUS_FD = re.compile(r"(?i)(?:-o)?APT::Status-Fd=(\d+)")


class _ServerEnds(BaseException):
    """SIGTERM: nothing that a command catches."""


def _end_server(number: int, frame: object) -> NoReturn:
    raise _ServerEnds


class Server:
    """Accepts on a socket that listens already.

    Args:
        listener: the socket.
        prepare: is told a command's words before each fork; what it imports, that fork and all that follow have.
        run: the command itself, in the fork; returns its exit status.
        look: is asked, before a fork, for the answer to a command of a client's process; without one the command is run.

    A client sends its streams, and as text how many words of its command line come before the command's own. What follows that, each
    after a zero byte, are words that come before these.
    """

    def __init__(
        self,
        listener: socket.socket,
        prepare: Callable[[list[str]], object],
        run: Callable[[list[str]], int],
        look: Callable[[int, list[str]], bytes | None] = lambda _client, _words: None,
    ) -> None:
        self._listener = listener
        self._look = look
        self._modules = 0
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
        signal.signal(signal.SIGTERM, _end_server)
        try:
            self._serve()
        except _ServerEnds:
            sys.exit()
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
            if (answer := self._look(client, words)) is None:
                self._start(connection, client, streams, words)
            else:
                with contextlib.suppress(ConnectionError):  # the client was killed
                    connection.sendall(answer)
                connection.close()
        for stream in streams:
            os.close(stream)

    def _start(self, connection: socket.socket, client: int, streams: list[int], words: list[str]) -> None:
        if self._modules != len(sys.modules):
            self._modules = len(sys.modules)
            gc.freeze()  # what is here is nothing for a fork's collector to look through, and so to copy
        umask = os.umask(0o077)
        try:
            ignored = _resemble(client)  # before the fork: what is written afterwards is copied, page by page
            pid = os.fork()
            if pid == 0:
                _become(client, streams, words, ignored, lambda: self._run(words))
        except OSError:  # the client was killed before it was answered
            connection.close()
            return
        finally:
            os.umask(umask)
            os.chdir("/")
        _lead(pid)
        self._poll.register(connection, select.POLLIN)
        self._connections[connection.fileno()] = connection
        self._commands[connection.fileno()] = pid

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


def _become(client: int, streams: list[int], words: list[str], ignored: int, run: Callable[[], int]) -> NoReturn:
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
        comm = os.open("/proc/self/comm", os.O_WRONLY)
        os.write(comm, f"{MARK}{client}".encode())
        os.close(comm)
        _take_streams(ignored)
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


def _set_environment(client: int) -> None:
    environment = dict(one.partition("=")[::2] for one in _fields(client, "environ"))
    os.environ.clear()
    os.environ.update(environment)


def _resemble(client: int) -> int:
    """Environment, umask and folder; return the signals that it ignores, as bits.

    Raises:
        OSError: it has ended.
    """
    _set_environment(client)
    os.chdir(f"/proc/{client}/cwd")
    with open(f"/proc/{client}/status", "rb") as file:  # noqa: PTH123
        about = file.read()
    umask, ignored = (_ABOUT[name].search(about) for name in ("Umask", "SigIgn"))
    if umask is None or ignored is None:
        raise OSError(errno.ESRCH, "it has ended")  # a process that is waited for has no umask any more
    os.umask(int(umask[1], 8))
    return int(ignored[1], 16)


def _take_streams(ignored: int) -> None:
    """Python's own streams, and the signals that the client ignores."""
    for one in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if ignored >> (one - 1) & 1:
            signal.signal(one, signal.SIG_IGN)
    sys.stdin = open(0, errors=sys.stdin.errors, closefd=False)  # noqa: PTH123, SIM115
    sys.stdout = open(1, "w", errors=sys.stdout.errors, closefd=False)  # noqa: PTH123, SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: PTH123, SIM115


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


class Looking:
    """Commands that the server does itself; what they might do besides is kept from them."""

    def __init__(self) -> None:
        self._program: Any = importlib.import_module("host.program")
        self._only_looks = importlib.import_module("host.run").only_looks
        sys.addaudithook(self._watch)

    def _watch(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self._program.looks_only:
            return
        if event == "open":
            if not _number(arguments[2]) & _WRITING:
                return
        elif event not in _DOING or (event == "fcntl.flock" and _number(arguments[1]) & fcntl.LOCK_NB):
            return
        raise self._program.NotAtOnce(event)

    def _set(self, looks_only: bool) -> None:
        # What of the lab a command needs besides this package imports it by its other name (guest_programs.py).
        for name in ("host.program", "lab.host.program"):
            if module := sys.modules.get(name):
                setattr(module, "looks_only", looks_only)  # noqa: B010  # a module's

    def answer(self, client: int, words: list[str]) -> bytes | None:
        """The answer to a client whose command only looks: what it prints, its status, what it is to become; None if that takes a fork."""
        if not self._only_looks(words):
            return None
        try:
            os.chdir(f"/proc/{client}/cwd")
        except OSError:
            return None  # killed before it was answered, or its folder is gone
        before = sys.stdin, sys.stdout, sys.stderr
        output, errors = io.BytesIO(), io.BytesIO()
        become: list[str] = []
        try:
            _set_environment(client)
            sys.stdin = None  # who reads it needs a process
            sys.stdout = io.TextIOWrapper(output, encoding="utf-8", errors=before[1].errors, newline="\n")
            sys.stderr = io.TextIOWrapper(errors, encoding="utf-8", errors="backslashreplace", newline="\n")
            sys.argv[1:] = words
            self._set(True)
            status = int(importlib.import_module("host.run").main()) & 255
        except self._program.Instead as instead:
            status, become = 0, instead.words
        except (self._program.NotAtOnce, Exception, SystemExit):
            return None  # done anew in a fork, and told there
        finally:
            self._set(False)
            told = (sys.stdout, sys.stderr)
            sys.stdin, sys.stdout, sys.stderr = before
            os.chdir("/")
        for stream in told:
            stream.flush()
        texts = errors.getvalue(), output.getvalue()
        last = b"".join(os.fsencode(word) + b"\0" for word in become)
        answer = struct.pack("3I", _TOLD | status, *map(len, texts)) + b"".join(texts) + last
        return answer if len(answer) <= _LONGEST_ANSWER else None


def _run(words: list[str]) -> int:
    gc.disable()  # a command ends before there is much to collect
    sys.argv[1:] = words
    return int(importlib.import_module("host.run").main())


if __name__ == "__main__":
    sys.path.append(__file__.rpartition("/host/")[0])
    Server(socket.socket(fileno=int(sys.argv[1])), _prepare, _run, Looking().answer).serve()
