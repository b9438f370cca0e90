"""Runs simulated commands in forks of one process that has their modules: `python -I -S command_server.py LISTENER`, or a fork of a process
that has them already (lab.commands).

A Python that starts and imports what a command needs takes ten times as long as the command's own work. Here a command runs in a fork,
with the streams of whoever asks (command.pl), and with its arguments, environment, folder, umask and ignored signals, which /proc
has of a process that waits. It is a process group of its own. Signals that reach the asking process are passed on to the group, and
when that process is killed, so is the group: for scripts, `timeout` and kill the one stands for the other.

A fork that has done its command takes the next one. To make one, with the pages that each copies, costs as much as a small command,
and what has been read once (network.py) is there already. It ends instead where its command has left a process, which would be in
one group with the next command, and where the command was sent a signal.

Half of all commands only look, for a millisecond: those the server does itself. Then the
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
import mmap
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
from collections.abc import Callable
from typing import Any, NoReturn

#: In the environment of a server: the host's Python is a fork of it, too (host_python.py). Otherwise it is a process of its own, as on a host.
FORKED_PYTHON = "LAB_FORKED_PYTHON"
_is_python_forked = FORKED_PYTHON in os.environ
#: Imported for the forks: what functions of the commands import for themselves.
PRELOADED = (shutil, subprocess)
#: How a fork's process is called in /proc/PID/comm, before the pid of who asked: lab.processes takes it for that one's child.
MARK = "lab/"
#: In the first number of an answer that isn't a status as wait(2) has it: all that is to be said follows, or the status does, when a
#: fork has done the command.
_TOLD, _BEGUN = 1 << 16, 1 << 17
#: What a socket's buffer takes in any case: the server waits for nobody.
_LONGEST_ANSWER = 1 << 16
#: A number and what comes before a command's arguments.
_LONGEST_QUESTION = 4096
#: What a command that only looks doesn't do (sys.audit), besides opening a file for writing.
_DOING = frozenset({
    *("subprocess.Popen", "os.system", "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.kill", "os.killpg"),
    *("os.chmod", "os.chown", "os.chflags", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rename", "os.rmdir"),
    *("os.truncate", "os.utime", "os.setxattr", "os.removexattr", "os.lockf", "shutil.rmtree", "shutil.copyfile"),
    *("fcntl.flock", "fcntl.lockf", "fcntl.fcntl", "fcntl.ioctl", "socket.connect", "socket.bind", "signal.pthread_kill"),
})  # fmt: skip
#: By which a command has started what may be left when it ends.
_STARTING = frozenset({
    *("subprocess.Popen", "os.system", "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn"),
})  # fmt: skip
#: Commands that run a program's own Python, whose process nobody else is given.
_ALONE = frozenset({"python3", "perl", "lab-python"})
#: How many commands a fork does, as nothing looks for garbage in it, and how many forks wait for one.
_COMMANDS_EACH, _FORKS_WAITING = 200, 4
#: Where a fork has its end of the channel to the server: above what a command of a shell has.
_CHANNEL = 200
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
#: Lines of /proc/PID/status.
_ABOUT = {name: re.compile(rb"^%s:\t(\w+)$" % name.encode(), re.M) for name in ("Umask", "SigIgn")}


class _ServerEnds(BaseException):
    """SIGTERM: nothing that a command catches."""


def _end_server(number: int, frame: object) -> NoReturn:
    raise _ServerEnds


class _Fork:
    """A fork that does commands."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.channel = channel
        #: How many modules it has.
        self.modules = len(sys.modules)
        #: Whose command it does now.
        self.connection: socket.socket | None = None
        #: What is asked of it, and the client's streams: another fork gets them where this one is killed before it took them.
        self.request: tuple[bytes, list[int]] = (b"", [])
        #: One byte that both processes see: whether it took them. What a fork received isn't that: one that dies may receive all the same
        #: (net/core/datagram.c, __skb_wait_for_more_packets: what is queued is taken, whatever signal is pending).
        self.taken = mmap.mmap(-1, 1)
        #: Whether it was sent a signal, which may arrive at any time.
        self.signalled = False


class Server:
    """Accepts on a socket that listens already.

    Args:
        listener: the socket.
        prepare: is told a command's words before it is run; what it imports, all forks that follow have.
        run: the command itself, in a fork; returns its exit status.
        look: is asked, before that, for the answer to a command of a client's process; without one the command is run, and the client is
            told so if there is a `look`.
        is_alone: whether a fork in which `run` has returned is left with something of the command, and takes no other one.

    A client sends its streams, and as text how many words of its command line come before the command's own. What follows that, each
    after a zero byte, are words that come before these.
    """

    def __init__(
        self,
        listener: socket.socket,
        prepare: Callable[[list[str]], object],
        run: Callable[[list[str]], int],
        look: Callable[[int, list[str]], bytes | None] | None = None,
        is_alone: Callable[[list[str]], bool] = lambda _words: True,
    ) -> None:
        self._listener = listener
        self._look = look
        self._modules = 0
        self._prepare = prepare
        self._run = run
        self._is_alone = is_alone
        self._forks: dict[int, _Fork] = {}  # pid -> itself
        self._told_by: dict[int, _Fork] = {}  # descriptor of its channel, or of its client's connection -> fork
        self._waiting: list[_Fork] = []
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
            for fork in list(self._forks.values()):
                self._end(fork, signal.SIGKILL)

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
                elif fork := self._told_by.get(descriptor):
                    if descriptor == fork.channel.fileno():
                        self._done(fork)
                    else:
                        self._pass_on(fork, descriptor)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        client, user, _ = struct.unpack("3i", credentials)
        asked, streams, _, _ = socket.recv_fds(connection, _LONGEST_QUESTION, 3)
        words = _words(client, asked) if user == os.geteuid() else []
        if not words or len(streams) != 3:
            connection.close()  # killed before it asked, or nobody of ours
        else:
            self._prepare(words)
            if self._is_to_begin(connection, client, words):
                self._start(connection, struct.pack("i", client) + asked, streams)
                return
            connection.close()
        _close(streams)

    def _is_to_begin(self, connection: socket.socket, client: int, words: list[str]) -> bool:
        """Whether a command takes a fork, as its client is told then; otherwise it has its answer, or was killed."""
        if self._look is None:
            return True
        answer = self._look(client, words)
        try:
            connection.sendall(struct.pack("I", _BEGUN) if answer is None else answer)
        except ConnectionError:
            return False
        return answer is None

    def _start(self, connection: socket.socket, asked: bytes, streams: list[int]) -> None:
        while True:
            try:
                fork = self._waiting_fork() or self._new_fork()
                fork.taken[0] = 0
                socket.send_fds(fork.channel, [asked], streams)
                break
            except ConnectionError:
                continue  # it was killed while it waited
            except OSError:  # no process can be had
                if self._told_by.pop(connection.fileno(), None):
                    self._poll.unregister(connection)
                connection.close()
                _close(streams)
                return
        fork.connection, fork.request = connection, (asked, streams)
        self._told_by[connection.fileno()] = fork
        self._poll.register(connection, select.POLLIN)

    def _waiting_fork(self) -> _Fork | None:
        """One that has all that was imported meanwhile; others end."""
        while self._waiting:
            fork = self._waiting.pop()
            if fork.modules == len(sys.modules):
                return fork
            self._leave(fork)
        return None

    def _new_fork(self) -> _Fork:
        if self._modules != len(sys.modules):
            self._modules = len(sys.modules)
            gc.freeze()  # what is here is nothing for a fork's collector to look through, and so to copy
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fork = _Fork(0, ours)
        fork.pid = pid = os.fork()
        if pid == 0:
            _become(theirs, fork.taken, self._run, self._is_alone)
        _lead(pid)
        theirs.close()
        self._forks[pid] = self._told_by[ours.fileno()] = fork
        self._poll.register(ours, select.POLLIN)
        return fork

    def _pass_on(self, fork: _Fork, descriptor: int) -> None:
        """Signals that came to the client; its end, which is the command's."""
        if fork.connection is None:
            return
        try:
            signals = fork.connection.recv(64, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return  # what was to be read was another's, whose descriptor this one has now
        except ConnectionError:
            signals = b""
        for number in signals:
            self._end(fork, signal.Signals(number))
        if not signals:
            self._end(fork, signal.SIGKILL)
            self._poll.unregister(descriptor)
            del self._told_by[descriptor]

    def _end(self, fork: _Fork, number: signal.Signals) -> None:
        fork.signalled = True
        try:
            os.killpg(fork.pid, number)
        except ProcessLookupError:
            return  # it has ended; its status is about to be sent

    def _done(self, fork: _Fork) -> None:
        """A fork says that its command has ended; or has ended itself, as `_reap` is told."""
        try:
            status = self._told(fork)
        except BlockingIOError:
            return
        if status is None:
            self._leave(fork)
            return
        self._answer(fork, status)
        if fork.signalled or len(self._waiting) == _FORKS_WAITING:
            self._leave(fork)
        else:
            self._waiting.append(fork)

    def _told(self, fork: _Fork) -> int | None:
        try:
            told = fork.channel.recv(4, socket.MSG_DONTWAIT)
        except ConnectionError:
            return None
        return int(struct.unpack("I", told)[0]) if told else None

    def _leave(self, fork: _Fork) -> None:
        """Expect no more of a fork: it ends, if it hasn't."""
        if self._told_by.pop(fork.channel.fileno(), None):
            self._poll.unregister(fork.channel)
            fork.channel.close()
        if fork in self._waiting:
            self._waiting.remove(fork)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if fork := self._forks.pop(pid, None):
                told = None
                with contextlib.suppress(BlockingIOError):
                    told = self._told(fork) if fork.channel.fileno() in self._told_by else None
                self._leave(fork)
                # One that ends by itself has met with something that the next one would meet, too.
                killed = os.WIFSIGNALED(status) and not fork.signalled
                if told is None and fork.connection and killed and not fork.taken[0]:
                    self._start(fork.connection, *fork.request)
                else:
                    self._answer(fork, status if told is None else told)

    def _answer(self, fork: _Fork, status: int) -> None:
        connection, fork.connection = fork.connection, None
        if connection is None:
            return
        _close(fork.request[1])
        try:
            if self._told_by.pop(connection.fileno(), None):
                self._poll.unregister(connection)
                connection.sendall(struct.pack("I", status))
        except ConnectionError:
            pass  # noqa: S110  # the client was killed: nobody waits for an answer
        finally:
            connection.close()


def _close(streams: list[int]) -> None:
    for stream in streams:
        os.close(stream)


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


def _words(client: int, asked: bytes) -> list[str]:
    """A command with its arguments; nothing where who asked has ended."""
    first, *own = asked.split(b"\0")
    line = _read(client, "cmdline").split(b"\0")[:-1] if first.isdigit() else []
    return [os.fsdecode(word) for word in (*own, *line[int(first) :])] if line else []


def _lead(process: int) -> None:
    """Both the server and the fork do it, so that neither goes on before it is done."""
    try:
        os.setpgid(process, process)
    except (ProcessLookupError, PermissionError):
        return  # ended, or another program already: it has done so itself


def _prepare(words: list[str]) -> None:
    """Import a command's module, for this fork and those that follow. What fails here fails in the fork, and is told there."""
    if _is_own_process(words):
        return
    try:
        module = importlib.import_module("host.run").module_of(words)
        getattr(module, "preload", lambda: None)()
    except Exception:
        return


def _is_own_process(words: list[str]) -> bool:
    return words[0] == "lab-python" and not _is_python_forked


def _become(
    channel: socket.socket, taken: mmap.mmap, run: Callable[[list[str]], int], is_alone: Callable[[list[str]], bool]
) -> NoReturn:
    """The fork: one command after the other, until the server ends or one leaves something behind."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _take_signals(0)
        _lead(0)
        os.dup2(channel.fileno(), _CHANNEL, inheritable=False)
        channel = socket.socket(fileno=_CHANNEL)
        gc.disable()  # a command ends before there is much to collect
        # What it leaves when its client is killed is nobody's who asked for anything (lab/processes.py).
        os.register_at_fork(after_in_child=lambda: _take_name("python"))
        for number in range(_COMMANDS_EACH):
            _let_go()
            if number:
                channel.sendall(struct.pack("I", (status & 255) << 8))
            asked, streams, _, _ = socket.recv_fds(channel, _LONGEST_QUESTION + 4, 3)
            if not asked:
                break
            taken[0] = 1
            client = struct.unpack_from("i", asked)[0]
            words = _words(client, asked[4:])
            status = _status(client, streams, words, run)
            if not words or is_alone(words):
                break
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status & 255)


def _has_company() -> bool:
    """Whether anybody else is in this fork's process group."""
    group = os.getpid()
    try:
        # The server's meanwhile: a fork that a signal misses now takes no other command anyway.
        os.setpgid(0, os.getpgid(os.getppid()))
        os.killpg(group, 0)
    except PermissionError:
        return True  # the server has ended
    except ProcessLookupError:
        os.setpgid(0, 0)
        return False
    return True


def _let_go() -> None:
    """Nothing of a command is kept: its streams, what it opened, its folder, the signals that it ignores, its name."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    os.closerange(3, _CHANNEL)
    os.closerange(_CHANNEL + 1, os.sysconf("SC_OPEN_MAX"))
    # What couldn't be written goes nowhere, not to the next one's streams.
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
    os.chdir("/")
    _take_signals(0)
    _take_name("lab")


def _status(client: int, streams: list[int], words: list[str], run: Callable[[list[str]], int]) -> int:
    """Do a command as the client's process would, in every respect, and return its exit status."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    try:
        ignored = _resemble(client)
    except OSError:
        return 137  # the client was killed before it was answered
    status = 1
    try:
        _take_name(f"{MARK}{client}")
        _take_signals(ignored)
        _take_streams()
        status = run(words)
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


def _set_environment(client: int) -> None:
    environment = dict(one.partition(b"=")[::2] for one in _read(client, "environ").split(b"\0")[:-1])
    # Most of it is what the last command had.
    for name, value in environment.items():
        if os.environb.get(name) != value:
            os.environb[name] = value
    if len(os.environb) > len(environment):
        for name in set(os.environb) - environment.keys():
            del os.environb[name]


def _resemble(client: int) -> int:
    """Environment, umask and folder; return the signals that it ignores, as bits.

    Raises:
        OSError: it has ended.
    """
    _set_environment(client)
    os.chdir(f"/proc/{client}/cwd")
    about = _read(client, "status")
    umask, ignored = (_ABOUT[name].search(about) for name in ("Umask", "SigIgn"))
    if umask is None or ignored is None:
        raise OSError(errno.ESRCH, "it has ended")  # a process that is waited for has no umask any more
    os.umask(int(umask[1], 8))
    return int(ignored[1], 16)


def _take_signals(ignored: int) -> None:
    """The signals that the client ignores, as bits; the others as they are in a Python that starts."""
    for one in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        usual = signal.default_int_handler if one == signal.SIGINT else signal.SIG_DFL
        signal.signal(one, signal.SIG_IGN if ignored >> (one - 1) & 1 else usual)


def _take_streams() -> None:
    """Python's own streams, on the client's."""
    sys.stdin = open(0, errors=sys.stdin.errors, closefd=False)  # noqa: PTH123, SIM115
    sys.stdout = open(1, "w", errors=sys.stdout.errors, closefd=False)  # noqa: PTH123, SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: PTH123, SIM115


def _modules(name: str) -> list[Any]:
    """A module of this package: what of the lab a command needs besides imports it by its other name (guest_programs.py)."""
    return [module for package in ("host", "lab.host") if (module := sys.modules.get(f"{package}.{name}"))]


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


class Looking:
    """Commands that the server does itself; what they might do besides is kept from them.

    In a fork, `is_alone` says of the command that was done whether it has left something.
    """

    def __init__(self) -> None:
        self._program: Any = importlib.import_module("host.program")
        self._commands: Any = importlib.import_module("host.run")
        self._started_in = 0
        sys.addaudithook(self._watch)

    def _watch(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self._program.looks_only:
            if event in _STARTING:
                self._started_in = os.getpid()
            return
        if event == "open":
            if not _number(arguments[2]) & _WRITING:
                return
        elif event not in _DOING or (event == "fcntl.flock" and _number(arguments[1]) & fcntl.LOCK_NB):
            return
        raise self._program.NotAtOnce(event)

    def is_alone(self, words: list[str]) -> bool:
        """Whether the fork that has done a command takes no other one."""
        if self._started_in == os.getpid():
            self._started_in = 0
            if _has_company():
                return True
        return threading.active_count() > 1 or not _ALONE.isdisjoint(words[:2])

    def _set(self, looks_only: bool) -> None:
        for module in _modules("program"):
            module.looks_only = looks_only
        for module in _modules("state"):
            module.HostState.remembers = looks_only

    def answer(self, client: int, words: list[str]) -> bytes | None:
        """The answer to a client whose command only looks: what it prints, its status, what it is to become; None if that takes a fork."""
        if _is_own_process(words):
            # The options are boot_service.PYTHON's.
            python = [os.path.realpath(sys.executable), "-I", "-S", "-B", "-X", "utf8"]
            return _whole(0, b"", b"", [*python, self._commands.__file__, *words])
        if not self._commands.only_looks(words):
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
            status = int(self._commands.main()) & 255
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
        return _whole(status, errors.getvalue(), output.getvalue(), become)


def _whole(status: int, errors: bytes, output: bytes, become: list[str]) -> bytes | None:
    """An answer with all that is to be said; None if it is too long."""
    last = b"".join(os.fsencode(word) + b"\0" for word in become)
    answer = struct.pack("3I", _TOLD | status, len(errors), len(output)) + errors + output + last
    return answer if len(answer) <= _LONGEST_ANSWER else None


def _run(words: list[str]) -> int:
    sys.argv[1:] = words
    for module in _modules("state"):
        module.HostState.remembers = True
    try:
        return int(importlib.import_module("host.run").main())
    finally:
        for module in _modules("state"):
            module.HostState.forget()  # a fork lets go of all files


def read_ahead() -> None:
    """Have every command's module, and what these import late, before the first one is asked for."""
    _find_package()
    run = importlib.import_module("host.run")
    for name in {**run.CONTAINER_PROGRAMS, **run.INSTALLED}:
        _prepare(["--container", name])
    for name in run.PROGRAMS:
        _prepare([name])


def serve(listener: socket.socket) -> None:
    """Be a command server, until stdin ends."""
    _find_package()
    looking = Looking()
    Server(listener, _prepare, _run, looking.answer, looking.is_alone).serve()


def _find_package() -> None:
    folder = __file__.rpartition("/host/")[0]
    if folder not in sys.path:
        sys.path.append(folder)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
