"""A container of this host as a system that a layer works on: its files and its programs, over one `lxc-attach`.

In the container runs files/container_helper.sh alone: nothing is installed there for our sake, and none of our Python
runs where a container's root could change it. Its files are never reached from outside (/proc/PID/root): a link in
there would lead to the host's. Nothing that a container says is believed: an answer has an end and a greatest length,
and whatever breaks that ends the whole conversation in a Failure. What it says of itself may still be a lie, as may
what it says over SSH.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import secrets
import select
import shlex
import signal
import subprocess
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from remote_scripts.tools import disk
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import Files
from remote_scripts.tools.log import Log
from remote_scripts.tools.run import ASK_SECONDS, DO_SECONDS, TIMED_OUT, Done, Progress, Run, last_lines, note_output
from remote_scripts.tools.state import PROGRESS_SECONDS, Work, locked_within
from remote_scripts.tools.system import System
from remote_scripts.tools.text import ANSWER_BYTES, LOG_BYTES, as_text

#: What one answer may have in all, in bytes, and a file that is written there.
GREATEST_BYTES = 16 * 1024 * 1024
WRITTEN_BYTES = 1024 * 1024
#: How long after a program's time its end is waited for, in seconds: the helper kills it in there.
GRACE_SECONDS = 10.0
#: For so long the turn of those who work in containers is waited for, in seconds.
_TURN_SECONDS = 20.0
_LOOK_SECONDS = 0.2
#: SIGKILL is 9. Windows, where this is imported and nothing of it runs, has no such name.
_KILLED = 128 + 9


def attach(ctid: int, helper: str) -> tuple[str, ...]:
    """The program that starts the helper in a container, with nothing of this host's environment.

    :param ctid: the container's id.
    :param helper: the text of files/container_helper.sh.
    """
    return ("lxc-attach", "--clear-env", "-n", str(ctid), "--", "/bin/sh", "-c", helper)


class Channel:
    """The conversation with the helper in a container. It begins with the first request.

    :param name: what the container is, for a person.
    :param begin: the program that starts the helper (`attach`).
    """

    def __init__(self, name: str, begin: Sequence[str], work: Work) -> None:
        self.name = name
        self._begin = begin
        self._work = work
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: Failure | None = None

    def request(
        self,
        verb: str,
        *words: str,
        content: bytes = b"",
        seconds: float = ASK_SECONDS,
        limit: int = ANSWER_BYTES,
        heard: Callable[[bytes], None] | None = None,
    ) -> Done:
        """Asks the helper. Of an answer longer than `limit` the rest is left out; the status is then 1 where it was 0,
        unless `heard` has got all of it.

        :param content: for standard input.
        :param seconds: until the program is killed in there.
        :param heard: called with what is said, as it comes, and with nothing about once a second.
        :raises Failure: the conversation is over: the container, or its shell, is gone; it has not answered in time; or
            it answers without end.
        :raises ValueError: a word has a newline or a NUL.
        """
        if any("\n" in word or "\0" in word for word in words):
            raise ValueError(f"{verb}: a word of several lines, or with a NUL: {words!r}")
        if self._failure:
            raise self._failure
        seconds = self._work.time_for(seconds)
        mark = secrets.token_hex(16)
        line = shlex.join([mark, str(math.ceil(seconds)), verb, *words])
        sent = line.encode("utf-8", "surrogateescape") + b"\n" + b64encode(content) + b"\n"
        try:
            process = self._process = self._process or self._started()
            return _Answer(process, mark.encode(), limit, heard).awaited(sent, seconds)
        except _NoAnswerError as error:
            self.close()
            self._failure = self._no_answer(str(error))
            raise self._failure from error

    def keep(self, descriptor: int) -> None:
        """Keeps an open file (a lock) until the helper has ended, also where this process is killed."""
        process = self._process
        if process is None or os.fork():
            return
        try:
            os.setsid()
            ended = os.pidfd_open(process.pid)
            os.dup2(descriptor, 3)
            if ended == 3:
                ended = os.pidfd_open(process.pid)
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nowhere, stream)
            os.closerange(4, ended)
            os.closerange(ended + 1, os.sysconf("SC_OPEN_MAX"))
            select.select([ended], [], [])
        finally:
            os._exit(0)

    def close(self) -> None:
        """Ends the conversation. What works in there by `do` goes on to its end."""
        process, self._process = self._process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _started(self) -> subprocess.Popen[bytes]:
        try:
            # A session of its own: a run that is killed stops no apt in the middle.
            process = subprocess.Popen(
                self._begin,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise _NoAnswerError(f"{self._begin[0]}: {error.strerror}") from error
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
        return process

    def _no_answer(self, found: str) -> Failure:
        return Failure(
            f"an answer from {self.name}",
            found,
            "what is in it is read and changed from inside, by its own programs, and nothing that it says is waited "
            "for without end",
            "see whether it runs, and whether a command runs in it (pct exec); then run `pulumi up` again",
        )


class _NoAnswerError(Exception):
    """Why there is none."""


class _Answer:
    """The answer to one request, as it comes."""

    def __init__(
        self, process: subprocess.Popen[bytes], mark: bytes, limit: int, heard: Callable[[bytes], None] | None
    ) -> None:
        assert process.stdin and process.stdout and process.stderr
        self._process = process
        self._in, self._out, self._error = (s.fileno() for s in (process.stdin, process.stdout, process.stderr))
        self._begin = b"\n" + mark + b" begin\n"
        self._end = re.compile(rb"\n" + mark + rb" ([0-9]{1,3})\n")
        self._limit = limit
        self._heard = heard
        self._has_begun = False
        self._new, self._output, self._errors = bytearray(), bytearray(), bytearray()
        self._count = self._length = 0

    def awaited(self, sent: bytes, seconds: float) -> Done:
        """Sends the request, and waits for the answer's end."""
        began = time.monotonic()
        deadline = began + seconds + GRACE_SECONDS
        left = memoryview(sent)
        streams = {self._out, self._error}
        while True:
            wait = deadline - time.monotonic()
            if wait <= 0:
                raise _NoAnswerError(f"there is none after {seconds + GRACE_SECONDS:.0f} s")
            ready, writable, _ = select.select([*streams], [self._in] if left else [], [], min(wait, 1.0))
            if writable:
                left = self._sent(left)
            if self._error in ready and not self._take_error():
                streams.discard(self._error)
            status = self._take() if self._out in ready else None
            if self._heard:
                self._heard(b"")
            if status is None:
                continue
            while self._error in streams and self._take_error():
                pass  # it was said before the answer's end
            if status == _KILLED and time.monotonic() - began >= seconds:
                status = TIMED_OUT
            if self._length > self._limit and not self._heard:
                status = status or 1
            return Done(status, bytes(self._output), bytes(self._errors[-LOG_BYTES:]))

    def _sent(self, left: memoryview) -> memoryview:
        try:
            return left[os.write(self._in, left[:65536]) :]
        except BlockingIOError:
            return left
        except OSError as error:
            raise _NoAnswerError(self._ended()) from error

    def _take(self) -> int | None:
        """Takes in what has come; the status, where the answer has ended."""
        data = os.read(self._out, 65536)
        if not data:
            raise _NoAnswerError(self._ended())
        self._count += len(data)
        if self._count > GREATEST_BYTES:
            raise _NoAnswerError(f"more than {GREATEST_BYTES} bytes, and no end")
        self._new += data
        if not self._has_begun:
            _, begin, rest = self._new.partition(self._begin)
            if not begin:
                del self._new[: -len(self._begin)]
                return None
            self._has_begun, self._new = True, rest
        end = self._end.search(self._new)
        if end:
            self._add(bytes(self._new[: end.start()]))
            return int(end[1])
        kept = len(self._begin) + 8
        if len(self._new) > kept:
            self._add(bytes(self._new[:-kept]))
            del self._new[:-kept]
        return None

    def _add(self, data: bytes) -> None:
        self._length += len(data)
        self._output += data[: max(0, self._limit - len(self._output))]
        if self._heard and data:
            self._heard(data)

    def _take_error(self) -> bool:
        try:
            data = os.read(self._error, 65536)
        except BlockingIOError:
            return False
        self._errors += data
        self._count += len(data)
        if self._count > GREATEST_BYTES:
            raise _NoAnswerError(f"more than {GREATEST_BYTES} bytes, and no end")
        del self._errors[:-LOG_BYTES]
        return bool(data)

    def _ended(self) -> str:
        """How the helper has ended, and its last words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        with contextlib.suppress(_NoAnswerError):
            while self._take_error():
                pass
        words = as_text(bytes(self._errors), 1000).strip()
        return f"its shell has ended, with exit status {self._process.returncode}{': ' if words else ''}{words}"


class ContainerRun(Run):
    """Starts programs in a container."""

    tells = False

    def __init__(self, channel: Channel, log: Log) -> None:
        self._channel = channel
        self._log = log
        #: Of all programs, besides what is in there: on no command line, which anybody may see.
        self.environment = {}
        self._known: dict[str, str] = {}

    def _tell_environment(self) -> None:
        for name, value in self.environment.items():
            if self._known.get(name) != value:
                self._channel.request("env", name, value)
                self._known[name] = value

    def has(self, program: str) -> bool:
        return self._channel.request("has", program).status == 0

    def ask(
        self,
        *arguments: str,
        seconds: float = ASK_SECONDS,
        limit: int = ANSWER_BYTES,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
    ) -> Done:
        """:raises Failure: as of `Channel.request`."""
        self._tell_environment()
        words = _with(environment, arguments)
        return self._channel.request("ask", *words, content=stdin, seconds=seconds, limit=limit)

    def do(
        self,
        *arguments: str,
        seconds: float = DO_SECONDS,
        doing: str = "",
        environment: Mapping[str, str] | None = None,
        progress: Progress | None = None,
        tells: bool = False,
    ) -> Done:
        """All that it says goes into the host's log. It goes on to its end, with the container's lock, also where this
        process is killed.

        :raises Failure: as of `Channel.request`.
        """
        self._tell_environment()
        name, title = self._channel.name, " ".join(arguments)
        self._log.heading(f"{name}: {doing}: {title}" if doing else f"{name}: {title}")
        began = told_at = time.monotonic()
        rest, end = b"", bytearray()

        def heard(data: bytes) -> None:
            nonlocal rest, told_at
            end.extend(data)
            del end[:-ANSWER_BYTES]
            if (now := time.monotonic()) - told_at >= PROGRESS_SECONDS:
                told_at = now
                where = progress(bytes(end), now - began) if progress else ""
                self._log.say(f"{name}: {doing or Path(arguments[0]).name}: {where or f'{now - began:.0f} s'}")
            whole, newline, rest = (rest + data)[-LOG_BYTES:].rpartition(b"\n")
            if newline:
                note_output(self._log, whole)

        done = self._channel.request("do", *_with(environment, arguments), seconds=seconds, heard=heard)
        if rest:
            note_output(self._log, rest)
        if done.status == TIMED_OUT:
            given_up = f"{title}: given up after {seconds:g} s\n".encode()
            note_output(self._log, given_up)
            end += given_up
        return last_lines(self._log, done.status, bytes(end))


def _with(environment: Mapping[str, str] | None, arguments: Sequence[str]) -> Sequence[str]:
    return (
        ["env", *(f"{name}={value}" for name, value in environment.items()), *arguments] if environment else arguments
    )


class ContainerDisk(disk.Disk):
    """The file systems of a container."""

    is_near = False

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def exists(self, where: Path) -> bool:
        return self._is("-e", where) or self._is("-L", where)

    def is_file(self, where: Path) -> bool:
        return self._is("-f", where)

    def is_folder(self, where: Path) -> bool:
        return self._is("-d", where)

    def is_link(self, where: Path) -> bool:
        return self._is("-L", where)

    def target(self, where: Path) -> str:
        return self._said("readlink", "-n", str(where))

    def resolved(self, where: Path) -> str:
        done = self._channel.request("ask", "readlink", "-f", "--", str(where))
        path = done.output.decode("utf-8", "surrogateescape").removesuffix("\n")
        return path if done.status == 0 and self._is("-e", Path(path)) else ""

    def mode(self, where: Path) -> int:
        output = self._said("stat", "-c", "%a", str(where))
        return int(output, 8) if re.fullmatch(r"[0-7]{1,4}\n?", output) else -1

    def size(self, where: Path) -> int:
        output = self._said("stat", "-c", "%s", str(where))
        return int(output) if re.fullmatch(r"[0-9]{1,18}\n?", output) else -1

    def read(self, where: Path, limit: int) -> bytes | None:
        if not self.is_file(where):
            return None
        done = self._channel.request("ask", "head", "-c", str(limit + 1), str(where), limit=limit + 1)
        return done.output if done.status == 0 else None

    def names(self, where: Path) -> list[str]:
        return [Path(path).name for path in self._found(where, "-mindepth", "1", "-maxdepth", "1")]

    def digest(self, where: Path) -> str:
        output = self._said("sha256sum", str(where), seconds=600)  # a name with a backslash has one before the sum
        return output.lstrip("\\").partition(" ")[0]

    def files_below(self, where: Path) -> list[str]:
        return [os.path.relpath(path, where) for path in self._found(where, "-type", "f")]

    def folders_of(self, where: Path) -> Iterator[Path]:
        return (Path(path) for path in self._found(where, "-depth", "-type", "d") if self.is_folder(where))

    def left_below(self, places: Sequence[Path], but: Path, is_left: Callable[[str], bool]) -> Iterator[Path]:
        for place in places:
            paths = self._found(place, "-xdev", "-name", ".?*", "!", "-type", "d")
            yield from (Path(path) for path in paths if is_left(Path(path).name))

    def make(self, where: Path, content: bytes, mode: int) -> None:
        if len(content) > WRITTEN_BYTES:
            raise ValueError(f"{where}: {len(content)} bytes")
        self._change("create", where, "write", str(where), str(len(content)), content=content)
        self._do("chmod", where, "chmod", f"{mode:04o}", str(where))
        self.flush(where)

    def mark(self, where: Path) -> None:
        self._do("create", where, "touch", str(where))
        self.flush(where)

    def copy(self, source: Path, where: Path) -> None:
        self._do("create", where, "cp", "-a", "--", str(source), str(where))
        if not self.is_link(where):
            self.flush(where)

    def link(self, target: str, where: Path) -> None:
        self._do("symlink", where, "ln", "-s", "--", target, str(where))

    def rename(self, source: Path, where: Path) -> None:
        self._do("rename", where, "mv", "-fT", "--", str(source), str(where))

    def remove(self, where: Path) -> None:
        self._do("remove", where, "rm", "-f", "--", str(where))

    def make_folder(self, where: Path) -> None:
        self._do("mkdir", where, "mkdir", "-m", "0755", "--", str(where))

    def remove_folder(self, where: Path) -> None:
        self._do("rmdir", where, "rmdir", "--", str(where))

    def remove_all(self, where: Path) -> None:
        self._do("remove", where, "rm", "-rf", "--", str(where))

    def flush(self, where: Path) -> None:
        self._do("flush", where, "sync", str(where))

    def clear(self, where: Path) -> None:
        self._said("rm", "-rf", "--", str(where))

    def _is(self, operator: str, where: Path) -> bool:
        return self._channel.request("test", operator, str(where)).status == 0

    def _said(self, *words: str, seconds: float = ASK_SECONDS) -> str:
        done = self._channel.request("ask", *words, seconds=seconds)
        if done.status:
            raise self._error(done, words[-1])
        return done.output.decode("utf-8", "surrogateescape")

    def _found(self, where: Path, *words: str) -> list[str]:
        """What `find` finds in a folder; nothing where it can't be read. It may be a link."""
        if not self.is_folder(where):
            return []
        done = self._channel.request("ask", "find", f"{where}/", *words, "-print0", limit=GREATEST_BYTES)
        return [path for path in done.output.decode("utf-8", "surrogateescape").split("\0") if path]

    def _do(self, call: str, where: Path, *words: str) -> None:
        self._change(call, where, "ask", *words)

    def _change(self, call: str, where: Path, *words: str, content: bytes = b"") -> None:
        disk.WATCH[-1](call, str(where))
        done = self._channel.request(*words, content=content, seconds=600)
        if done.status:
            raise self._error(done, str(where))

    def _error(self, done: Done, where: str) -> OSError:
        message = as_text(done.error, 1000).strip() or f"exit status {done.status}"
        return OSError(errno.EIO, message, f"{where} in {self._channel.name}")


class ContainerWork(Work):
    """A run on a container: it has the container's lock, and its turn on the host, by which the next run waits for it.
    `inside`: the folder of the lock in there.
    """

    def __init__(self, root: Path, log: Log, limit: float) -> None:
        super().__init__(root, log, limit)
        self.channel: Channel | None = None
        self.inside = "/run/homelab"
        self._turn: int | None = None

    def take_lock(self) -> None:
        """By the lock that scripts in there take, too.

        :raises Failure: another one has the lock still after `lock_seconds`, or there is no place for it.
        """
        assert self.channel
        self._turn = self._take_turn()
        deadline = time.monotonic() + self.lock_seconds
        while (done := self.channel.request("lock", self.inside)).status:
            if done.error or time.monotonic() >= deadline:
                raise Failure(
                    f"to be the only one changing {self.channel.name}",
                    as_text(done.error, 1000).strip()
                    or f"another run still holds /run/homelab/lock in there after {self.lock_seconds:g} s",
                    "two runs at once would write over each other; nothing was changed",
                    "wait for it, or look at it in there with: fuser -v /run/homelab/lock",
                )
            self.go_on(f"waiting for another run in {self.channel.name}")
            time.sleep(_LOOK_SECONDS)
        if self._turn is not None:
            self.channel.keep(self._turn)

    def release(self) -> None:
        if self.channel:
            with contextlib.suppress(Failure):
                self.channel.request("unlock")
        if self._turn is not None:
            os.close(self._turn)
            self._turn = None

    def _take_turn(self) -> int | None:
        """Several may work in containers at once; None: /run is full, which keeps none from working."""
        with contextlib.suppress(OSError):
            self.need_folder()
            descriptor = os.open(self.folder / "inside", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            locked_within(descriptor, _TURN_SECONDS, shared=True)
            if self.client:
                os.lseek(descriptor, 0, os.SEEK_END)
                os.write(descriptor, self.client.encode() + b"\n")
            return descriptor
        return None


class Container(System):
    """One run on one container.

    :param name: what it is, for a person.
    :param begin: the program that starts the helper (`attach`).
    :param host: the run on the host that it is on.
    :param root: before every path in there; empty but in tests and on simulated hosts.
    """

    def __init__(self, name: str, begin: Sequence[str], host: System, root: str = "") -> None:
        self.log = host.log
        self._of_container = ContainerWork(host.root, host.log, host.work.limit)
        self.work = self._of_container
        self.channel = self._of_container.channel = Channel(name, begin, self.work)
        self.run = ContainerRun(self.channel, host.log)
        self.proxy = host.proxy
        self._tell_proxy()
        self.also_put_back = None
        self.is_container = True
        self.set_root(root)

    def set_root(self, root: str) -> None:
        """:param root: before every path in there from now on; empty: nothing."""
        self.root = Path(root or "/")
        self._of_container.inside = f"{root}/run/homelab"
        self.files = Files(self.root, self.log, self.run, ContainerDisk(self.channel))

    def close(self) -> None:
        self.channel.close()
