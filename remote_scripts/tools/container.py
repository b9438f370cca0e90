"""A container of this host as a system that a layer works on: its files and its programs, over one `lxc-attach`.

In the container runs files/container_helper.sh alone: nothing is installed there for our sake, and none of our Python
runs where a container's root could change it. Its files are never reached from outside (/proc/PID/root): a link in
there would lead to the host's. Nothing that a container says is believed: an answer has an end and a greatest length,
and whatever breaks that ends the whole conversation in a Failure. What it says of itself may still be a lie, as may
what it says over SSH.
"""

from __future__ import annotations

import contextlib
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
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath

from remote_scripts.tools import disk
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.log import Log
from remote_scripts.tools.run import ASK_SECONDS, DO_SECONDS, TIMED_OUT, Done
from remote_scripts.tools.state import PROGRESS_SECONDS, Work
from remote_scripts.tools.text import ANSWER_BYTES, LOG_BYTES, as_text

#: What one answer may have in all, in bytes, and a file that is written there.
GREATEST_BYTES = 16 * 1024 * 1024
WRITTEN_BYTES = 1024 * 1024
#: How long after a program's time its end is waited for, in seconds: the helper kills it in there.
GRACE_SECONDS = 10.0
_LAST_LINES = 5
_LOOK_SECONDS = 0.2
_TEMPORARY = ".homelab-tmp"
_KILLED = 128 + signal.SIGKILL


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
            self._failure = self._over(str(error))
            raise self._failure from error

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

    def _over(self, found: str) -> Failure:
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


class ContainerRun:
    """Starts programs in a container, as `tools.run.Run` does on the host."""

    def __init__(self, channel: Channel, log: Log) -> None:
        self._channel = channel
        self._log = log

    def has(self, program: str) -> bool:
        """Whether there is a program of this name on the PATH."""
        return self._channel.request("has", program).status == 0

    def ask(
        self,
        *arguments: str,
        seconds: float = ASK_SECONDS,
        limit: int = ANSWER_BYTES,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
    ) -> Done:
        """What a program says on standard output; parameters as of `Run.ask`.

        :raises Failure: as of `Channel.request`.
        """
        words = _with(environment, arguments)
        return self._channel.request("ask", *words, content=stdin, seconds=seconds, limit=limit)

    def do(
        self,
        *arguments: str,
        seconds: float = DO_SECONDS,
        doing: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> Done:
        """A program that changes something: all that it says goes into the host's log; `output` is the end of it. It
        goes on to its end, with the container's lock, also where this process is killed.

        :raises Failure: as of `Channel.request`.
        """
        title = " ".join(arguments)
        self._log.heading(f"{self._channel.name}: {doing}: {title}" if doing else f"{self._channel.name}: {title}")
        began = said = time.monotonic()
        rest, end = b"", bytearray()

        def heard(data: bytes) -> None:
            nonlocal rest, said
            if (now := time.monotonic()) - said >= PROGRESS_SECONDS:
                said = now
                self._log.say(f"{self._channel.name}: {doing or PurePosixPath(arguments[0]).name}: {now - began:.0f} s")
            end.extend(data)
            del end[:-LOG_BYTES]
            whole, newline, rest = (rest + data)[-LOG_BYTES:].rpartition(b"\n")
            if newline:
                self._log.note(whole)

        done = self._channel.request("do", *_with(environment, arguments), seconds=seconds, heard=heard)
        if rest:
            self._log.note(rest)
        last = "\n".join(self._log.clean(bytes(end)).rstrip("\n").split("\n")[-_LAST_LINES:])
        if done.status != 0 and last:
            self._log.say(last)
        return Done(done.status, last.encode())


def _with(environment: Mapping[str, str] | None, arguments: Sequence[str]) -> Sequence[str]:
    return (
        ["env", *(f"{name}={value}" for name, value in environment.items()), *arguments] if environment else arguments
    )


class ContainerFiles:
    """Files in a container, read and written whole, as far as `tools.files.Files` does so without notes.

    :param root: before every path; empty but in tests.
    """

    def __init__(self, channel: Channel, root: str = "") -> None:
        self._channel = channel
        self._root = root

    def exists(self, path: str) -> bool:
        """A link counts, wherever it leads."""
        where = self._root + path
        return self._ask("test", "-e", where).status == 0 or self._ask("test", "-L", where).status == 0

    def read(self, path: str, limit: int = ANSWER_BYTES) -> bytes | None:
        """What a file has, at most `limit` bytes and one more; None: it can't be read, or is no file."""
        where = self._root + path
        if self._ask("test", "-f", where).status:
            return None
        done = self._channel.request("ask", "head", "-c", str(limit + 1), where, limit=limit + 1)
        return done.output if done.status == 0 else None

    def text(self, path: str) -> str:
        """What a file has, as text without the newlines at its end; empty where it can't be read."""
        return as_text(self.read(path) or b"").rstrip("\n")

    def line(self, path: str) -> str:
        """The first line of a file; empty where it can't be read."""
        return as_text((self.read(path, 4096) or b"").partition(b"\n")[0])

    def names(self, path: str) -> list[str]:
        """What is in a folder, sorted; nothing where it can't be read."""
        done = self._ask("find", f"{self._root}{path}/", "-mindepth", "1", "-maxdepth", "1", "-print0")
        found = done.output.decode("utf-8", "surrogateescape").split("\0") if done.status == 0 else []
        return sorted(one.rpartition("/")[2] for one in found if one)

    def write(self, path: str, content: bytes, mode: int) -> None:
        """A reader sees the old bytes or the new ones, never a mixture; on the disk when this returns.

        :raises Failure: it can't be written; the old one is still there.
        :raises ValueError: it is longer than WRITTEN_BYTES.
        """
        if len(content) > WRITTEN_BYTES:
            raise ValueError(f"{path}: {len(content)} bytes")
        where = self._root + path
        folder, _, name = where.rpartition("/")
        temporary = f"{folder}/.{name}{_TEMPORARY}"
        self._need("remove", path, temporary, "rm", "-f", "--", temporary)
        self._about("create", temporary)
        self._checked(path, self._channel.request("write", temporary, str(len(content)), content=content))
        self._need("chmod", path, temporary, "chmod", f"{mode:04o}", temporary)
        self._need("flush", path, temporary, "sync", temporary)
        self._need("rename", path, where, "mv", "-fT", "--", temporary, where)
        self._need("flush", path, folder, "sync", folder)

    def remove(self, *paths: str) -> None:
        """Takes files away; what isn't there is no error.

        :raises Failure: one can't be taken away.
        """
        for path in paths:
            if self.exists(path):
                where = self._root + path
                self._need("remove", path, where, "rm", "-f", "--", where)
                self._need("flush", path, where, "sync", where.rpartition("/")[0])

    def _ask(self, *words: str) -> Done:
        return self._channel.request("ask", *words)

    def _need(self, call: str, path: str, changed: str, *words: str) -> None:
        self._about(call, changed)
        self._checked(path, self._channel.request("ask", *words, seconds=600))

    def _about(self, call: str, path: str) -> None:
        disk.WATCH[-1](call, path)

    def _checked(self, path: str, done: Done) -> None:
        if done.status:
            raise Failure(
                f"{path} in {self._channel.name} written, or taken away",
                as_text(done.error, 1000).strip() or f"exit status {done.status}",
                "what this run changes must be on the disk before it goes on",
                "make room there, or see what holds it, then run `pulumi up` again",
            )


class Container:
    """One run on one container.

    :param name: what it is, for a person.
    :param begin: the program that starts the helper (`attach`).
    :param log: the host's.
    :param work: the run on the host.
    :param root: before every path in there; empty but in tests.
    """

    def __init__(self, name: str, begin: Sequence[str], log: Log, work: Work, root: str = "") -> None:
        self.channel = Channel(name, begin, work)
        self.log = log
        self.work = work
        self._folder = f"{root}/run/homelab"
        self.run = ContainerRun(self.channel, log)
        self.files = ContainerFiles(self.channel, root)

    def take_lock(self) -> None:
        """Makes this run the only one that changes the container: by the lock that scripts in there take, too.

        :raises Failure: another one has the lock still after `work.lock_seconds`, or there is no place for it.
        """
        deadline = time.monotonic() + self.work.lock_seconds
        while (done := self.channel.request("lock", self._folder)).status:
            if done.error or time.monotonic() >= deadline:
                raise Failure(
                    f"to be the only one changing {self.channel.name}",
                    as_text(done.error, 1000).strip()
                    or f"another run still holds /run/homelab/lock in there after {self.work.lock_seconds:g} s",
                    "two runs at once would write over each other; nothing was changed",
                    "wait for it, or look at it in there with: fuser -v /run/homelab/lock",
                )
            self.work.go_on(f"waiting for another run in {self.channel.name}")
            time.sleep(_LOOK_SECONDS)

    def release(self) -> None:
        """Gives the lock back."""
        self.channel.request("unlock")
