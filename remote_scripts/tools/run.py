"""Programs of this system: started with a list of arguments, never by a shell, and always with an end.

Each is a process group of its own, which is killed when its time is up, and whose output goes into a file in memory.
`ask` is for questions. `do` is for work: another process watches it, so that it goes on if this one is killed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from remote_scripts.tools.done import ASK_SECONDS, NOT_FOUND, TIMED_OUT, TOO_MUCH, Done
from remote_scripts.tools.log import Log
from remote_scripts.tools.state import PROGRESS_SECONDS, Work
from remote_scripts.tools.text import ANSWER_BYTES, LOG_BYTES

with contextlib.suppress(ImportError):  # on Windows, where the program has the types of layers alone
    import fcntl

#: How long what changes something may take: an initramfs for each kernel on a slow disk takes minutes.
DO_SECONDS = 1800.0
_LAST_LINES = 5
#: How much of what a program has said last stands in a line that says that it goes on, in characters.
_SHOWN = 100
#: Of a program's output that goes into the log, how much is taken of what it says in a second, in bytes.
_PART_BYTES = 1 << 20
#: How many bytes of a program's output the file in memory holds: a program that repeats a question without an end could
#: fill all memory within a minute.
_FILE_BYTES = 16 << 20
#: How often that is looked at.
_FILE_SECONDS = 0.1
#: So long a program that is to end has between SIGTERM and SIGKILL, in seconds.
_GRACE_SECONDS = 2.0
#: The folders of programs that every system has.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


#: In a test: a program's name -> what is called in its place, with the arguments and standard input.
Stand = Callable[[Sequence[str], bytes], "Done | int | str | None"]


class Run:
    """Starts programs.

    :param programs: in a test, what is called in the place of programs; whatever else is asked for isn't there.
    """

    #: Whether a program gets files of this system: /dev/null, and one for its output.
    gives_files = True

    def __init__(self, log: Log, work: Work, programs: Mapping[str, Stand] | None = None) -> None:
        #: What of its work is said comes after this.
        self.name = ""
        self._log = log
        self._work = work
        self._programs = programs
        path = _whole_path(os.environ.get("PATH", ""), is_whole_system=work.root == Path("/"))
        self.environment = {**os.environ, "LC_ALL": "C", "PATH": path}

    def has(self, program: str) -> bool:
        """Whether there is a program of this name on the PATH."""
        return program in self._programs if self._programs is not None else bool(self.find(program))

    def find(self, program: str) -> str:
        """The path of a program of this name on the PATH; empty: there is none."""
        paths = (f"{folder}/{program}" for folder in self.environment["PATH"].split(":"))
        return next((path for path in paths if os.access(path, os.X_OK)), "")

    def ask(
        self,
        *arguments: str,
        seconds: float = ASK_SECONDS,
        limit: int = ANSWER_BYTES,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
    ) -> Done:
        """What a program says on standard output. A process that it leaves behind with its output open keeps none
        waiting.

        :param seconds: until its process group is killed.
        :param limit: of the output, in bytes; more of it isn't waited for.
        :param environment: further variables.
        """
        if self._programs is not None:
            return self._stand(arguments, stdin)
        out, errors = _file(), _file()
        try:
            status = self._ended(arguments, self._work.time_for(seconds), environment, out, errors, limit, stdin)
            return Done(status, os.pread(out, limit, 0), _end_of(errors, LOG_BYTES))
        finally:
            os.close(out)
            os.close(errors)

    def do(
        self,
        *arguments: str,
        seconds: float = DO_SECONDS,
        doing: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> Done:
        """A program that changes something. All that it says goes into this system's log; `output` of the answer is
        the end of it, which a person gets to see where it fails. Another process keeps the lock until the program has
        ended, also where this one is killed.

        :param doing: what is done, for the lines that say that it goes on; by default the program's name.
        """
        self._log.heading(": ".join(filter(None, (self.name, doing, " ".join(arguments)))))
        if self._programs is not None:
            done = self._stand(arguments, b"")
        else:
            doing = ": ".join(filter(None, (self.name, doing or Path(arguments[0]).name)))
            done = self._watched(arguments, self._work.time_for(seconds), doing, environment)
        said = done.output + done.error
        last = "\n".join(self._log.clean(said[-LOG_BYTES:]).rstrip("\n").split("\n")[-_LAST_LINES:])
        if done.status != 0 and last:
            self._log.show(last)
        return Done(done.status, last.encode(), said=said)

    def _watched(
        self,
        arguments: Sequence[str],
        seconds: float,
        doing: str,
        environment: Mapping[str, str] | None,
    ) -> Done:
        out = _file()
        status_end, keeper_end = os.pipe()
        keeper = os.fork()
        if keeper == 0:
            os.close(status_end)
            self._keep(arguments, seconds, environment, out, keeper_end)
        os.close(keeper_end)
        began = told_at = time.monotonic()
        noted = 0
        while not select.select([status_end], [], [], 1.0)[0]:
            noted = self._pass_on(out, noted, whole=False)
            if (now := time.monotonic()) - told_at >= PROGRESS_SECONDS:
                told_at = now
                last = self._log.clean(_last_line(_end_of(out)))[:_SHOWN]  # a secret that was cut would stay
                self._log.say(": ".join(filter(None, (doing, f"{now - began:.0f} s", last))))
        answered = os.read(status_end, 16)
        os.close(status_end)
        os.waitpid(keeper, 0)
        self._pass_on(out, noted, whole=True)
        status = int(answered) if answered else 1  # it was killed
        if status == TIMED_OUT:
            os.write(out, f"{' '.join(arguments)}: given up after {seconds:g} s\n".encode())
        output = _end_of(out)
        os.close(out)
        return Done(status, output)

    def _keep(
        self,
        arguments: Sequence[str],
        seconds: float,
        environment: Mapping[str, str] | None,
        out: int,
        answer: int,
    ) -> None:
        """The process that keeps the lock while a program works: it has its descriptor, and the program hasn't."""
        status = 1
        try:
            os.setsid()
            if os.fork():  # none of this run's processes any more, which may be killed
                os._exit(0)
            # A reader that waits for the end of this process's output waits for no program.
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nowhere, stream)
            status = self._ended(arguments, seconds, environment, out, out)
        finally:
            with contextlib.suppress(OSError):
                os.write(answer, str(status).encode())
            os._exit(0)

    def _pass_on(self, out: int, noted: int, *, whole: bool) -> int:
        """Notes what has come since, whole lines of it or all; of very much the end. Returns up to where."""
        size = os.fstat(out).st_size
        noted = max(noted if noted <= size else 0, size - _PART_BYTES)
        new = os.pread(out, size - noted, noted)
        if not whole:
            new = new[: new.rfind(b"\n") + 1]
        if new:
            note_output(self._log, new)
        return noted + len(new)

    def _ended(
        self,
        arguments: Sequence[str],
        seconds: float,
        environment: Mapping[str, str] | None,
        out: int,
        errors: int,
        limit: int = sys.maxsize,
        stdin: bytes = b"",
    ) -> int:
        """Starts a program, and waits until it has ended, its time is up, or it has said more than `limit`; its status.

        :param out: the file for what it says; of what it says on standard error: `errors`, maybe the same. That begins
            anew where it grows too large.
        """
        try:
            process = self._begin(arguments, environment, out, errors, stdin)
        except OSError as error:
            is_missing = isinstance(error, FileNotFoundError)
            os.write(errors, f"{arguments[0]}: {'not found' if is_missing else error.strerror}\n".encode())
            return NOT_FOUND if is_missing else 126
        ended = os.pidfd_open(process.pid)
        streams = [(stream, file) for stream, file in ((process.stdout, out), (process.stderr, errors)) if stream]
        pipes = {stream.fileno(): file for stream, file in streams}
        for pipe in pipes:
            os.set_blocking(pipe, False)
        deadline = time.monotonic() + seconds
        status, open_pipes = TIMED_OUT, {*pipes}
        while (left := deadline - time.monotonic()) > 0:
            ready = select.select([ended, *open_pipes], [], [], min(left, _FILE_SECONDS))[0]
            if ended in ready:
                status = _exit_status(process.wait())
                break
            open_pipes -= {pipe for pipe in open_pipes & {*ready} if not _hand_on(pipe, pipes[pipe])}
            if os.fstat(out).st_size > limit:
                self._end(process)
                break
            if os.fstat(errors).st_size > _FILE_BYTES:
                os.ftruncate(errors, 0)
        else:
            self._end(process)
        for pipe in open_pipes:  # what it had said when it ended
            _hand_on(pipe, pipes[pipe])
        os.close(ended)
        for stream, _ in streams:
            stream.close()
        return status if os.fstat(out).st_size <= limit else TOO_MUCH

    def _begin(
        self, arguments: Sequence[str], environment: Mapping[str, str] | None, out: int, errors: int, stdin: bytes
    ) -> subprocess.Popen[bytes]:
        given = os.memfd_create("stdin") if stdin or not self.gives_files else None
        if given is not None:
            os.write(given, stdin)
            os.lseek(given, 0, os.SEEK_SET)
        try:
            return subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL if given is None else given,
                stdout=out if self.gives_files else subprocess.PIPE,
                stderr=subprocess.STDOUT if errors == out else errors if self.gives_files else subprocess.PIPE,
                env={**self.environment, **(environment or {})},
                cwd="/",
                start_new_session=True,
            )
        finally:
            if given is not None:
                os.close(given)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Its process group: SIGTERM, and later SIGKILL."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_SECONDS)
                # What it has started has the group still.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                return

    def _stand(self, arguments: Sequence[str], stdin: bytes) -> Done:
        stand = (self._programs or {}).get(arguments[0])
        if stand is None:
            return Done(NOT_FOUND, b"", f"{arguments[0]}: not found\n".encode())
        answer = stand(arguments[1:], stdin)
        if isinstance(answer, Done):
            return answer
        return Done(answer, b"") if isinstance(answer, int) else Done(0, (answer or "").encode())


def _whole_path(given: str, *, is_whole_system: bool) -> str:
    """With the folders that every system has: over sudo, or for a user's own commands, it may lack some, and
    they stay whoever may write there. Without others in which others than root may put programs, which root would run.

    :param is_whole_system: whether the system's root is this process's: a test or a simulated host has folders of its
        user's.
    """
    folders, every_system_has = given.split(":") if given else [], PATH.split(":")
    if is_whole_system:
        folders = [folder for folder in folders if folder in every_system_has or _is_roots_alone(Path(folder))]
    return ":".join([*folders, *(folder for folder in every_system_has if folder not in folders)])


def _is_roots_alone(folder: Path) -> bool:
    """Whether root alone may write in a folder."""
    try:
        about = folder.stat()
    except OSError:
        return False
    return about.st_uid == 0 and not about.st_mode & 0o022


def note_output(log: Log, new: bytes) -> None:
    """Notes what a program has said in this system's log; that it waits for another one is told, too."""
    # Of lines that were written over (dpkg's counting) the last state.
    lines = [line.rstrip(b"\r").rpartition(b"\r")[2] for line in new.split(b"\n")]
    log.note(b"\n".join(lines).rstrip(b"\n"))
    for line in lines:
        if line.startswith(b"Waiting for cache lock"):
            log.say(line.decode("utf-8", "surrogateescape"))
            break


def _file() -> int:
    """A file in memory, written at its end, which may be its beginning again."""
    file = os.memfd_create("output")
    fcntl.fcntl(file, fcntl.F_SETFL, os.O_APPEND)
    return file


def _hand_on(source: int, target: int) -> bool:
    """Whether something came; where there is no room for it, it is lost, and whoever says it goes on."""
    try:
        data = os.read(source, _PART_BYTES)
    except BlockingIOError:
        return False
    with contextlib.suppress(OSError):
        os.write(target, data)
    return bool(data)


def _exit_status(status: int) -> int:
    return status if status >= 0 else 128 - status


def _last_line(said: bytes) -> str:
    """What a person sees last of it."""
    return said[-LOG_BYTES:].strip().replace(b"\r", b"\n").rpartition(b"\n")[2].decode("utf-8", "replace")


def _end_of(descriptor: int, limit: int = ANSWER_BYTES) -> bytes:
    return os.pread(descriptor, limit, max(0, os.fstat(descriptor).st_size - limit))


def parents() -> dict[int, int]:
    """Each process of this machine, and the one that has started it."""
    found = {}
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text(errors="replace")
            found[int(pid)] = int(status.partition("\nPPid:\t")[2].partition("\n")[0])
    return found


def end_all(process: int) -> None:
    """Kills a process, its group, and all that came from it: whoever kills lxc-attach alone leaves running what it has
    started in a container. They are stopped first, so that none starts another one meanwhile, and no id is given again.
    """
    found: list[int] = []
    new = [process]
    # Who is root in a container may let them go on, to start others without end.
    deadline = time.monotonic() + _GRACE_SECONDS
    while new and time.monotonic() < deadline:
        for pid in new:
            _signal(pid, signal.SIGSTOP)
        found += new
        new = [pid for pid, parent in parents().items() if parent in found and pid not in found]
    for pid in reversed(found):
        _signal(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)


def _signal(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)
