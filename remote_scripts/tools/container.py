"""A container of this host as a system that a layer works on: its files and its programs, each program and each
change of a file by an `lxc-attach` of its own.

Nothing is installed in there for our sake, and none of our Python runs where a container's root could change it. Its
files are never reached from outside (/proc/PID/root): a link in there would lead to the host's; and its programs get
no file of the host, whose mode its root could change, not even /dev/null. Nothing that a container says is believed: an
answer has a greatest length, and one without its end is a Failure. What it says of itself may still be a lie, as may
what it says over SSH.

Of an init that is just ending lxc-attach finds no mount namespace (ENOENT, which __prepare_namespaces_nsfd of LXC's
attach.c takes for a shared one), and starts the program among the host's files: each first looks where it is.
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
_ASKED = '%s; printf "\\n$?\\n"'
_MOUNTS = "/proc/self/ns/mnt"
_NOT_THERE = (
    f'[ "$(readlink {_MOUNTS})" != "%s" ] || '
    '{ echo "it has just stopped: lxc-attach led to the host instead" >&2; exit 1; }; '
)
# Of a file that isn't there, and of what is none.
_NOTHING, _NO_FILE = 8, 9
# Done with each of the paths, "$2", which comes after the folder that it is in; where it fails, the answer is which.
_EACH = 'while [ $# != 0 ]; do %s || { printf %%s "$2"; exit 1; }; shift 2; done'


class ContainerRun(Run):
    """Starts programs in a container, with nothing of this host's environment.

    :param ctid: the container's id.
    :param name: what it is, for a person.
    """

    gives_files = False

    def __init__(self, ctid: int, name: str, host: System, work: Work) -> None:
        super().__init__(host.log, work)
        self.name = name
        self._attach = (self.find("lxc-attach") or "lxc-attach", "--clear-env", "-n", str(ctid))
        #: Goes before each program: it ends where the files are this process's own. A simulated host has no others.
        self.guard = _NOT_THERE % os.readlink(_MOUNTS) if host.root == Path("/") else ""
        #: NixOS has its programs in a folder of its own.
        self.environment = {"LC_ALL": "C", "PATH": f"{PATH}:/run/current-system/sw/bin"}

    def has(self, program: str) -> bool:
        """:raises Failure: as of `ask`."""
        return self.ask("command", "-v", program).status == 0

    def ask(self, *arguments: str, **more: Any) -> Done:
        """As of a host; the status is the program's.

        :raises Failure: the container doesn't run, or stops meanwhile, or has no shell.
        """
        return self.script('"$@"', *arguments, **more)

    def script(
        self, text: str, *arguments: str, seconds: float = ASK_SECONDS, limit: int = ANSWER_BYTES, **more: Any
    ) -> Done:
        """The same of a script of the container's own shell; nothing of an argument is read as a part of it."""
        words = ("/bin/sh", "-c", _ASKED % text, "sh", *arguments)
        done = super().ask(*words, seconds=seconds, limit=limit + 5, **more)
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
        if self.guard:
            arguments = ("/bin/sh", "-c", f'{self.guard}exec "$@"', "sh", *arguments)
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
    """The file systems of a container. What a call does is one script: an lxc-attach takes some ten milliseconds."""

    is_near = False

    def __init__(self, run: ContainerRun) -> None:
        self._run = run

    def exists(self, where: Path) -> bool:
        return self._is("-e", str(where), "-o", "-L", str(where))

    def there(self, places: Sequence[Path]) -> list[Path]:
        looked_for = 'for p; do if [ -e "$p" ] || [ -L "$p" ]; then printf "%s\\0" "$p"; fi; done'
        return [Path(path) for path in self._paths(looked_for, *map(str, places))]

    def is_file(self, where: Path) -> bool:
        return self._is("-f", str(where))

    def is_folder(self, where: Path) -> bool:
        return self._is("-d", str(where))

    def is_link(self, where: Path) -> bool:
        return self._is("-L", str(where))

    def target(self, where: Path) -> str:
        return self._said('readlink -n "$1"', str(where))

    def resolved(self, where: Path) -> str:
        done = self._asked('readlink -f -- "$1" && [ -e "$1" ]', str(where))
        return done.output.decode("utf-8", "surrogateescape").removesuffix("\n") if done.status == 0 else ""

    def read(self, where: Path, limit: int) -> bytes | None:
        others = f'[ -e "$2" ] || [ -L "$2" ] || exit {_NOTHING}; exit {_NO_FILE}'
        done = self._asked(
            f'[ ! -f "$2" ] || exec head -c "$1" "$2"; {others}', str(limit + 1), str(where), limit=limit + 1
        )
        if done.status == 0:
            return done.output
        if done.status == _NOTHING:
            return None
        raise OSError(errno.EIO, "it can't be read", str(where))

    def names(self, where: Path) -> list[str]:
        return [Path(path).name for path in self._found(where, "-mindepth", "1", "-maxdepth", "1")]

    def look(self, where: Path) -> tuple[int, str]:
        mode, _, digest = self._said('stat -c %a "$1" && sha256sum "$1"', str(where)).partition("\n")
        # Of a name with a backslash there is one before the sum.
        return int(mode, 8) if re.fullmatch(r"[0-7]{1,4}", mode) else -1, digest.lstrip("\\").partition(" ")[0]

    def digest(self, where: Path) -> str:
        return self.look(where)[1]

    def files_below(self, where: Path) -> list[str]:
        return [os.path.relpath(path, where) for path in self._found(where, "-type", "f")]

    def folders_of(self, where: Path) -> list[Path]:
        return [Path(path) for path in self._found(where, "-depth", "-type", "d")]

    def left_below(self, places: Sequence[Path], but: Path, is_left: Callable[[str], bool]) -> Iterator[Path]:
        for place in places:
            paths = self._found(place, "-xdev", "-name", ".?*", "!", "-type", "d")
            yield from (Path(path) for path in paths if is_left(Path(path).name))

    def write(self, temporary: Path, content: bytes, mode: int, where: Path) -> None:
        self._said(
            'umask 077; rm -f -- "$4" && (set -C; cat >"$4") && [ "$(wc -c <"$4")" -eq "$1" ] && chmod "$2" "$4" && '
            # Where this process was killed meanwhile, nobody reads the dot, and the next run's file has that name.
            'sync "$4" && printf . && mv -fT -- "$4" "$5" && sync "$3"',
            *(str(len(content)), f"{mode:04o}", str(where.parent), str(temporary), str(where)),
            stdin=content,
        )

    def copy(self, source: Path, where: Path) -> None:
        # cp would take a folder with all that is in it.
        self._said(
            '[ -L "$1" ] || [ ! -d "$1" ] || { printf %s "$1"; echo "it is a folder" >&2; exit 1; }; '
            'rm -f -- "$2" && cp -a -- "$1" "$2" && { [ -L "$2" ] || sync "$2"; }',
            *(str(source), str(where)),
        )

    def link(self, target: str, where: Path) -> None:
        self._said('rm -f -- "$2" && ln -s -- "$1" "$2"', target, str(where))

    def rename(self, source: Path, where: Path) -> None:
        self._said('mv -fT -- "$2" "$3" && sync "$1"', str(where.parent), str(source), str(where))

    def remove(self, *places: Path) -> None:
        self._said(
            _EACH % '{ [ ! -e "$2" ] && [ ! -L "$2" ]; } || { rm -f -- "$2" && sync "$1"; }', *_in_folders(places)
        )

    def remove_all(self, where: Path) -> None:
        self._said('rm -rf -- "$2" && sync "$1"', *_in_folders([where]))

    def need_folder(self, where: Path, mode: int = 0o755) -> None:
        self._said(
            _EACH % f'[ -d "$2" ] || {{ mkdir -m {mode:04o} -- "$2" && sync "$1"; }}',
            *_in_folders([*reversed(where.parents), where]),
        )

    def remove_folders(self, folders: Sequence[Path]) -> None:
        self._said(_EACH % '! rmdir -- "$2" 2>/dev/null || sync "$1"', *_in_folders(folders))

    def flush(self, where: Path) -> None:
        self._said('sync "$1"', str(where))

    def _asked(self, script: str, *words: str, seconds: float = ASK_SECONDS, **more: Any) -> Done:
        """:raises Failure: there is no answer in time, or it is too long: that is no "no"."""
        done = self._run.script(f"({script})", *words, seconds=seconds, **more)
        if done.status in (TIMED_OUT, TOO_MUCH):
            about = next((word for word in words if word.startswith("/")), script)
            raise self._run.no_answer(f"{about}: none after {seconds:.0f} s, or one without end")
        return done

    def _is(self, *words: str) -> bool:
        return self._asked('test "$@"', *words).status == 0

    def _said(self, script: str, *words: str, **more: Any) -> str:
        """:raises OSError: the script fails: at the path that it says, or the last of the words."""
        done = self._asked(script, *words, seconds=600, **more)
        if done.status:
            message = as_text(done.error, 1000).strip() or f"exit status {done.status}"
            path = done.text if done.text.startswith("/") else words[-1]
            raise OSError(errno.EIO, message, f"{path} in {self._run.name}")
        return done.output.decode("utf-8", "surrogateescape")

    def _found(self, where: Path, *words: str) -> list[str]:
        """What `find` finds in a folder; nothing where it can't be read. It may be a link."""
        return self._paths('[ ! -d "$1" ] || find "$@" -print0', f"{where}/", *words)

    def _paths(self, script: str, *words: str) -> list[str]:
        done = self._asked(script, *words, limit=GREATEST_BYTES)
        return [path for path in done.output.decode("utf-8", "surrogateescape").split("\0") if path]


def _in_folders(places: Sequence[Path]) -> Iterator[str]:
    return (str(path) for where in places for path in (where.parent, where))


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
