"""A container of this host as a system that a layer works on: its files and its programs, each program by an
`lxc-attach` of its own.

Nothing is installed in there for our sake, and none of our Python runs where a container's root could change it. Its
files are never reached from outside (/proc/PID/root): a link in there would lead to the host's; and its programs get
no file of the host, whose mode its root could change, not even /dev/null. Nothing that a container says is believed: an
answer has a greatest length, and one without its end is a Failure. What it says of itself may still be a lie, as may
what it says over SSH.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from remote_scripts.tools import disk
from remote_scripts.tools.done import ASK_SECONDS, TIMED_OUT, TOO_MUCH, Done
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import Files
from remote_scripts.tools.run import PATH, Run, end_all
from remote_scripts.tools.state import Work
from remote_scripts.tools.system import System
from remote_scripts.tools.text import ANSWER_BYTES, as_text

#: What `find` may answer, in bytes.
GREATEST_BYTES = 16 * 1024 * 1024
#: How long lxc-attach's end is waited for once it is killed, in seconds.
_END_SECONDS = 2.0
# lxc-attach's own status says too little: 1 is a "no", and a container that is off. At most five bytes.
_ASKED = '"$@"; printf "\\n$?\\n"'
# A new file; none may be there.
_MADE = 'umask 077; set -C; cat >"$2" && [ "$(wc -c <"$2")" -eq "$1" ]'


class ContainerRun(Run):
    """Starts programs in a container, with nothing of this host's environment.

    :param ctid: the container's id.
    :param name: what it is, for a person.
    """

    gives_files = False

    def __init__(self, ctid: int, name: str, host: System, work: Work) -> None:
        super().__init__(host.root, host.log, work)
        self.name = name
        self._attach = (self.find("lxc-attach") or "lxc-attach", "--clear-env", "-n", str(ctid))
        #: NixOS has its programs in a folder of its own.
        self.environment = {"LC_ALL": "C", "PATH": f"{PATH}:/run/current-system/sw/bin"}

    def has(self, program: str) -> bool:
        """:raises Failure: as of `ask`."""
        return self.ask("command", "-v", program).status == 0

    def ask(
        self,
        *arguments: str,
        seconds: float = ASK_SECONDS,
        limit: int = ANSWER_BYTES,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
    ) -> Done:
        """As of a host; the status is the program's.

        :raises Failure: the container doesn't run, or stops meanwhile, or has no shell.
        """
        words = ("/bin/sh", "-c", _ASKED, "sh", *arguments)
        done = super().ask(*words, seconds=seconds, limit=limit + 5, stdin=stdin, environment=environment)
        if done.status == TIMED_OUT:
            return done
        end = re.search(rb"\n([0-9]{1,3})\n\Z", done.output)
        if done.status == TOO_MUCH or (end and end.start() > limit):
            return Done(TOO_MUCH, done.output[:limit], done.error)
        if done.status or not end:
            raise self.no_answer(as_text(done.error, 1000).strip() or f"lxc-attach has ended: {done.status}")
        return Done(int(end[1]), done.output[: end.start()], done.error)

    def no_answer(self, found: str) -> Failure:
        """What a person gets to read where a container doesn't answer."""
        return Failure(
            f"an answer from {self.name}",
            found,
            "what is in it is read and changed from inside, by its own programs, and nothing that it says is waited "
            "for without end",
            "see whether it runs, and whether a command runs in it (pct exec); then run `pulumi up` again",
        )

    def _begin(
        self, arguments: Sequence[str], environment: Mapping[str, str] | None, out: int, errors: int, stdin: bytes
    ) -> subprocess.Popen[bytes]:
        # On no command line, which anybody may see.
        inside = {**self.environment, **(environment or {})}
        kept = (word for name in inside for word in ("--keep-var", name))
        words = (*self._attach, *kept, "--", *arguments)
        begun = super()._begin(words, {**os.environ, **inside}, out, errors, stdin)
        for stream in filter(None, (begun.stdout, begun.stderr)):
            # So that a package's script can open /dev/stderr: its root isn't the host's.
            os.fchmod(stream.fileno(), 0o666)
        return begun

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        end_all(process.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)


class ContainerDisk(disk.Disk):
    """The file systems of a container."""

    is_near = False

    def __init__(self, run: ContainerRun) -> None:
        self._run = run

    def exists(self, where: Path) -> bool:
        return self._is("-e", str(where), "-o", "-L", str(where))

    def is_file(self, where: Path) -> bool:
        return self._is("-f", str(where))

    def is_folder(self, where: Path) -> bool:
        return self._is("-d", str(where))

    def is_link(self, where: Path) -> bool:
        return self._is("-L", str(where))

    def target(self, where: Path) -> str:
        return self._said("readlink", "-n", str(where))

    def resolved(self, where: Path) -> str:
        done = self._asked("readlink", "-f", "--", str(where))
        path = done.output.decode("utf-8", "surrogateescape").removesuffix("\n")
        return path if done.status == 0 and self._is("-e", path) else ""

    def mode(self, where: Path) -> int:
        output = self._said("stat", "-c", "%a", str(where))
        return int(output, 8) if re.fullmatch(r"[0-7]{1,4}\n?", output) else -1

    def read(self, where: Path, limit: int) -> bytes | None:
        if self.is_file(where):
            done = self._asked("head", "-c", str(limit + 1), str(where), limit=limit + 1)
            if done.status == 0:
                return done.output
        if self.exists(where):
            raise OSError(errno.EIO, "it can't be read", str(where))
        return None

    def names(self, where: Path) -> list[str]:
        return [Path(path).name for path in self._found(where, "-mindepth", "1", "-maxdepth", "1")]

    def digest(self, where: Path) -> str:
        output = self._said("sha256sum", str(where), seconds=600)
        # A name with a backslash has one before the sum.
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
        self._do("create", "sh", "-c", _MADE, "sh", str(len(content)), str(where), stdin=content)
        self._do("chmod", "chmod", f"{mode:04o}", str(where))
        self.flush(where)

    def copy(self, source: Path, where: Path) -> None:
        self._do("create", "cp", "-a", "--", str(source), str(where))
        if not self.is_link(where):
            self.flush(where)

    def link(self, target: str, where: Path) -> None:
        self._do("symlink", "ln", "-s", "--", target, str(where))

    def rename(self, source: Path, where: Path) -> None:
        self._do("rename", "mv", "-fT", "--", str(source), str(where))

    def remove(self, where: Path) -> None:
        self._do("remove", "rm", "-f", "--", str(where))

    def make_folder(self, where: Path) -> None:
        self._do("mkdir", "mkdir", "-m", "0755", "--", str(where))

    def remove_folder(self, where: Path) -> None:
        self._do("rmdir", "rmdir", "--", str(where))

    def remove_all(self, where: Path) -> None:
        self._do("remove", "rm", "-rf", "--", str(where))

    def flush(self, where: Path) -> None:
        self._do("flush", "sync", str(where))

    def _asked(self, *words: str, seconds: float = ASK_SECONDS, **more: Any) -> Done:
        """:raises Failure: there is no answer in time, or it is too long: that is no "no"."""
        done = self._run.ask(*words, seconds=seconds, **more)
        if done.status in (TIMED_OUT, TOO_MUCH):
            raise self._run.no_answer(f"{words[0]}: none after {seconds:.0f} s, or one without end")
        return done

    def _is(self, *words: str) -> bool:
        return self._asked("test", *words).status == 0

    def _said(self, *words: str, **more: Any) -> str:
        """:raises OSError: the program fails; its last word is a path."""
        done = self._asked(*words, **more)
        if done.status:
            message = as_text(done.error, 1000).strip() or f"exit status {done.status}"
            raise OSError(errno.EIO, message, f"{words[-1]} in {self._run.name}")
        return done.output.decode("utf-8", "surrogateescape")

    def _found(self, where: Path, *words: str) -> list[str]:
        """What `find` finds in a folder; nothing where it can't be read. It may be a link."""
        if not self.is_folder(where):
            return []
        done = self._asked("find", f"{where}/", *words, "-print0", limit=GREATEST_BYTES)
        return [path for path in done.output.decode("utf-8", "surrogateescape").split("\0") if path]

    def _do(self, call: str, *words: str, stdin: bytes = b"") -> None:
        disk.WATCH[-1](call, words[-1])
        self._said(*words, seconds=600, stdin=stdin)


class ContainerSystem(System):
    """One run on one container.

    :param ctid: its id.
    :param host: the run on the host that it is on.
    :param root: before every path in there; empty but in tests and on simulated hosts.
    """

    def __init__(self, ctid: int, host: System, root: str = "") -> None:
        name = f"container {ctid}"
        self.log = host.log
        self.work = Work(host.root, host.log, host.work.limit, f"inside-{ctid}", name)
        self.run = self._run = ContainerRun(ctid, name, host, self.work)
        self.proxy = host.proxy
        self._tell_proxy()
        self.also_put_back = None
        self.is_container = True
        self.set_root(root)

    def set_root(self, root: str) -> None:
        """:param root: before every path in there from now on; empty: nothing."""
        self.root = Path(root or "/")
        self.files = Files(self.root, self.log, self.run, ContainerDisk(self._run))
