"""Files that are written whole, are on the disk before anything goes on from there, and can be given back.

/var/lib/homelab holds what a `revert` needs: files/LAYER/PATH says that we wrote PATH (mode, SHA-256; maybe the ones
before), kept/PATH is what we found there, sums/PATH is the SHA-256 of that copy, dirs lists the folders that we made,
pending/ the steps that must still follow. It is gone when nothing is ours any more.

A run may end at any call, killed or by a power cut. The next one goes on from what is on the disk then, so

- copy, sum, record and file are written in this order and taken away in the opposite one, also by `undo`, each flushed
  before the next: a file is ours only while a record says so, and whatever it replaced is kept, whole, before that;
- the step that must follow a change (`followed_by`) is noted before the first change, and the note goes only when what
  the step made is on the disk;
- .NAME.homelab-tmp (what NAME will be) and folders .homelab-undo (what files were) are there only while a run works.
"""

from __future__ import annotations

import difflib
import errno
import functools
import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from remote_scripts.tools import disk
from remote_scripts.tools.device import Device
from remote_scripts.tools.errors import Failure, UnreadableError
from remote_scripts.tools.log import Log
from remote_scripts.tools.places import HOME as HOME
from remote_scripts.tools.run import Run
from remote_scripts.tools.text import ANSWER_BYTES, as_text
from remote_scripts.tools.time_limit import within_limit

#: Where copies lie of homelab's files as others had edited them.
EDITS = "/var/backups/homelab"
#: Where there are homelab's files, and the folders for what they were.
_PLACES = ("/etc", "/usr", HOME)
#: Where a run that was cut short may have left something.
_LEFT = ("/etc", "/usr/local/sbin", "/usr/share/keyrings", "/boot/grub", EDITS, HOME)
_TEMPORARY, _UNDO = ".homelab-tmp", ".homelab-undo"
#: The file systems of all that we write, and of all that is made of it.
_FLUSHED = ("/etc", "/var/lib", "/boot")
#: No file that decides something is longer.
GREATEST_BYTES = 1 << 26
T = TypeVar("T")


State = Literal["ok", "changed", "missing"]
How = Literal["new", "changed", "given back", "removed", "made"]


@dataclass(frozen=True)
class PlannedFile:
    """What a plan would do. `how`: `given back` is what somebody had there before us, `removed` a file that nobody had
    there, `made` one that is made of other files; `what`: the path, or words; `diff`: unified, of a file that others
    have written or edited and that is replaced; empty: none.
    """

    how: How
    what: str
    diff: str = ""


@dataclass(frozen=True)
class Planned:
    """The answer of a layer's `plan`."""

    files: tuple[PlannedFile, ...] = ()


@dataclass(frozen=True)
class Changed:
    """The answer of a layer's verb that changes something, where there is no more to say: whether anything was."""

    changed: bool


class Files:
    """The files of one run.

    :param root: before every path.
    :param there: the disk that they are on; by default this system's.
    """

    def __init__(self, root: Path, log: Log, run: Run, there: disk.Disk | None = None) -> None:
        self._root = root
        self._log = log
        self._run = run
        self._disk = there or disk.Disk()
        #: Whether what this run wrote, or would write, differs from what was there.
        self.changed = False
        #: Nothing is written; what would be is noted for `plan`.
        self.planning = False
        self._planned: list[PlannedFile] = []
        #: The step that must follow whatever this run changes; empty: none.
        self.followed_by = ""
        #: Where `undo` couldn't put something back.
        self.not_put_back = ""
        #: Called by `finish`, once nothing is to be undone any more.
        self.at_finish: list[Callable[[], None]] = []
        #: Whether /etc/pve, once it hasn't answered, isn't waited for again.
        self.asks_pve_once = False
        self._pve_hangs = ""
        self._undo: dict[str, Path | None] = {}
        self._temporaries: list[Path] = []
        self._step_noted = False
        self._step_begun = ""

    def at(self, path: str) -> Path:
        """Where a path of this system is, for this process.

        :raises ValueError: the system is a container, whose files this process never opens itself.
        """
        if not self._disk.is_near:
            raise ValueError(f"{path} of another system")
        return self._at(path)

    def name(self, path: str) -> str:
        """A path as programs of the system know it."""
        return str(self._at(path))

    def _at(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    # Reading.

    def _of(self, path: str, look: Callable[[Path], T]) -> T:
        """What a look at a path shows. One at /etc/pve has an end: it hangs where its daemon does.

        :raises TimeoutError: it has no answer.
        """
        where = self._at(path)
        if not _is_pve(path):
            return look(where)
        if self._pve_hangs:
            raise TimeoutError(self._pve_hangs)
        try:
            return within_limit(lambda: look(where))
        except TimeoutError as error:
            self._pve_hangs = str(error) if self.asks_pve_once else ""
            raise

    def exists(self, path: str) -> bool:
        """A link counts, wherever it leads.

        :raises OSError: it can't be told.
        """
        return self._of(path, self._disk.exists)

    def is_file(self, path: str) -> bool:
        """Whether it is a file, or a link that leads to one."""
        return self._of(path, self._disk.is_file)

    def is_folder(self, path: str) -> bool:
        """Whether it is a folder, or a link that leads to one."""
        return self._of(path, self._disk.is_folder)

    def is_link(self, path: str) -> bool:
        """Whether it is a symbolic link."""
        return self._of(path, self._disk.is_link)

    def target(self, path: str) -> str:
        """Where a symbolic link leads, as it says; empty: it is none."""
        return self._of(path, self._disk.target) if self.is_link(path) else ""

    def resolved(self, path: str) -> str:
        """The path that a path leads to, by all links; empty where there is nothing."""
        real = self._disk.resolved(self._at(path))
        root = self._disk.resolved(self._root).rstrip("/") if str(self._root) != "/" else ""
        return real.removeprefix(root)

    def real(self, path: str) -> str:
        """The path without links, whether anything is there or not."""
        root = os.path.realpath(self._root).rstrip("/")
        return os.path.realpath(self.at(path)).removeprefix(root) or "/"

    def need(self, path: str, limit: int = GREATEST_BYTES) -> bytes | None:
        """All that a file has; None: it isn't there.

        :raises UnreadableError: it is there, and can't be read, or has more than `limit` bytes.
        """
        try:
            content = self._of(path, functools.partial(self._look, path, limit))
        except OSError as error:
            raise UnreadableError(path, error.strerror or str(error)) from error
        if content is not None and len(content) > limit:
            raise UnreadableError(path, f"it is longer than {limit} bytes")
        return content

    def _look(self, path: str, limit: int, where: Path) -> bytes | None:
        look = functools.partial(self._disk.read, where, limit)
        return disk.steady(where, look) if _is_pve(path) else look()

    def need_text(self, path: str, limit: int = GREATEST_BYTES) -> str:
        """The same as text, in which bytes that are no UTF-8 are surrogates; empty: it isn't there."""
        return (self.need(path, limit) or b"").decode("utf-8", "surrogateescape")

    def read(self, path: str, limit: int = ANSWER_BYTES) -> bytes | None:
        """What a file has, at most `limit` bytes and one more, by which much can be told from all; None: it can't be
        read, or is no file.
        """
        try:
            return self._of(path, lambda where: self._disk.read(where, limit))
        except OSError:
            return None

    def text(self, path: str) -> str:
        """What a file has, as text without the newlines at its end; empty where it can't be read."""
        return as_text(self.read(path) or b"").rstrip("\n")

    def line(self, path: str) -> str:
        """The first line of a file; empty where it can't be read."""
        return as_text((self.read(path, 4096) or b"").partition(b"\n")[0])

    def names(self, path: str) -> list[str]:
        """What is in a folder, sorted; nothing where it can't be read."""
        return sorted(self._of(path, self._disk.names))

    def need_names(self, path: str) -> list[str]:
        """The same; nothing where there is no such folder.

        :raises UnreadableError: it is there, and can't be read.
        """
        try:
            return sorted(self._of(path, lambda _: os.listdir(self.at(path))))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UnreadableError(path, error.strerror or str(error)) from error

    def device(self, path: str) -> Device | None:
        """The character device at a path, links followed; None: there is none, or something else.

        :raises OSError: it can't be told.
        """
        try:
            status = os.stat(self.at(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISCHR(status.st_mode):
            return None
        return Device(os.major(status.st_rdev), os.minor(status.st_rdev), stat.S_IMODE(status.st_mode))

    # Writing, one file at a time. Each is on the disk when the call returns.

    def write(self, path: str, content: bytes, mode: int) -> None:
        """A reader sees the old bytes or the new ones, never a mixture."""
        temporary = self._temporary(path)
        if self._disk.exists(temporary):  # of a run that was cut short; it may be a link
            self._disk.remove(temporary)
        self._disk.make(temporary, content, mode)
        self._in_place(temporary, path)

    def copy(self, source: str, path: str) -> None:
        """The same for a copy of a file or link, with owner and times; it may be on another file system."""
        self._copy(self._at(source), path)

    def _copy(self, source: Path, path: str) -> None:
        self._need_folder(self._at(path).parent)
        temporary = self._temporary(path)
        self._disk.remove(temporary)
        self._disk.copy(source, temporary)
        self._in_place(temporary, path)

    def rewrite(self, path: str, content: bytes) -> None:
        """The same for a file that is there, whose owner, mode and extended attributes stay; where it is a link, the
        file that it leads to.
        """
        where = self.at(path).resolve()
        temporary = where.with_name(f".{where.name}{_TEMPORARY}")
        self._temporaries.append(temporary)
        disk.remove(temporary)
        with disk.create(temporary, 0o600) as descriptor:
            disk.copy_attributes(where, temporary)
            disk.write(descriptor, content, temporary)
            disk.flush_open(descriptor, temporary)
        disk.rename(temporary, where)
        disk.flush(where.parent)

    def overwrite(self, path: str, content: bytes) -> None:
        """A file's first bytes, in place: where they are in one sector, a power cut leaves the old ones or the new."""
        where = self.at(path)
        with disk.opened(where, os.O_WRONLY | os.O_NOFOLLOW) as descriptor:
            disk.write(descriptor, content, where)
            disk.flush_open(descriptor, where)

    def write_link(self, target: str, path: str) -> None:
        """The same for a symbolic link, which leads to `target`."""
        temporary = self._temporary(path)
        self._disk.remove(temporary)
        self._disk.link(target, temporary)
        self._in_place(temporary, path)

    def remove(self, *paths: str) -> None:
        """Takes files away; what isn't there is no error."""
        for path in paths:
            if self.exists(path):
                self._disk.remove(self._at(path))
                self._disk.flush(self._at(path).parent)

    def move(self, source: str, path: str) -> None:
        """A file that a program has made gets its name, with its bytes on the disk before."""
        self._disk.flush(self._at(source))
        self._in_place(self._at(source), path)

    def remove_tree(self, path: str) -> None:
        """Takes a folder away with all that is in it, without a copy; what isn't there is no error."""
        if self.is_folder(path):
            self._disk.remove_all(self._at(path))
            self._disk.flush(self._at(path).parent)

    def note(self, path: str, content: bytes) -> None:
        """A file of our own below /var/lib/homelab, with its folder. Nothing is done where it has that content."""
        if self.read(path, len(content)) != content:
            self._need_folder(self._at(path).parent)
            self.write(path, content, 0o600)

    def need_folder(self, path: str) -> None:
        """Makes a folder and those above it, with nothing noted: of our own below /var/lib/homelab."""
        self._need_folder(self._at(path))

    def _need_folder(self, folder: Path) -> None:
        if folder == folder.parent or self._disk.is_folder(folder):
            return
        self._need_folder(folder.parent)
        with suppress(FileExistsError):
            self._disk.make_folder(folder)
        self._disk.flush(folder.parent)

    def make_folder(self, path: str) -> None:
        """The same for a folder of the system: which weren't there is noted, and they go with our last file."""
        missing = []
        while path and not self.is_folder(path):
            missing.append(path)
            path = path.rpartition("/")[0]
        if not missing:
            return
        self._need_folder(self._at(HOME))
        noted = {*missing, *self._lines(f"{HOME}/dirs")}
        self._write_lines(f"{HOME}/dirs", sorted(noted))
        self._need_folder(self._at(missing[0]))

    def make_device(self, path: str, device: Device) -> None:
        """Makes a character device in the place of what is there; it lasts until the next boot."""
        where = self.at(path)
        self._need_folder(where.parent)
        disk.remove(where)
        disk.make_node(where, device.mode, device.major, device.minor)

    def make_work_folder(self, path: str) -> None:
        """An empty folder, for root alone, that is there while a run works; what an earlier one left in it goes."""
        self.remove_tree(path)
        disk.make_folder(self.at(path), 0o700)

    def append(self, path: str, line: bytes, limit: int) -> None:
        """Adds a line to a log. It isn't flushed; of more than `limit` bytes the second half is left."""
        where = self.at(path)
        self._need_folder(where.parent)
        disk.append(where, line + b"\n", 0o600)
        if where.stat().st_size > limit:
            self.write(path, (self.read(path, 2 * limit) or b"")[-limit // 2 :].partition(b"\n")[2], 0o600)

    def set_attribute(self, path: str, value: str | bytes, *, makes: bool = False) -> None:
        """Writes into a file by which the kernel is told something (/sys, /proc).

        :param makes: whether the file may have to be made, such as an EFI variable's.
        :raises OSError: it doesn't take the value.
        """
        where = self.at(path)
        with disk.opened(where, os.O_WRONLY | os.O_TRUNC | (os.O_CREAT if makes else 0), 0o644) as descriptor:
            disk.write(descriptor, value.encode() if isinstance(value, str) else value, where)

    # Homelab's files, by layers.

    def put(self, layer: str, path: str, mode: int, content: bytes) -> None:
        """A file of homelab's; what was there before is kept for `drop`."""
        record = f"{mode:04o} {hashlib.sha256(content).hexdigest()}"
        if self.line(_record(layer, path)) == record and self.state(layer, path) == "ok":
            return
        if self.planning:
            is_theirs = self.state(layer, path) == "changed"
            self.plan_file("changed" if self.exists(path) else "new", path, content if is_theirs else None)
            return
        self._claim(layer, path, record)
        self.write(path, content, mode)
        self.changed = True
        self._log.say(f"wrote {path}")

    def drop(self, layer: str, path: str) -> None:
        """Takes our file away, and puts back what was there before it. Nothing happens if we never wrote it."""
        record = _record(layer, path)
        if not self.exists(record):
            # A run that was cut short before it wrote anything had kept it already.
            records = self._disk.files_below(self._at(f"{HOME}/files"))
            of_others = any(record.partition("/")[2] == path[1:] for record in records)
            if not self.planning and not of_others:
                self.forget(path)
            return
        self.need_kept(path)
        if self.planning:
            self.plan_file("given back" if self.exists(f"{HOME}/kept{path}") else "removed", path)
            return
        self.about_to_change()
        self._temporary(path)  # of a run that was cut short: it goes with those of this one
        self.keep_edit(layer, path)
        self.remember(path, record, f"{HOME}/sums{path}", f"{HOME}/kept{path}")
        if self.exists(f"{HOME}/kept{path}"):
            self.copy(f"{HOME}/kept{path}", path)
        else:
            self.remove(path)
        self.remove(record)
        self.forget(path)
        self.changed = True
        self._log.say(f"gave back {path}")

    def has_put(self, layer: str, path: str) -> bool:
        """Whether a layer has written a file, which may be another one by now, or gone."""
        return self.exists(_record(layer, path))

    def of_layer(self, layer: str) -> dict[str, State]:
        """The files that we wrote for a layer, sorted, and what became of them."""
        paths = (f"/{path}" for path in self._disk.files_below(self._at(f"{HOME}/files/{layer}")))
        return {path: self.state(layer, path) for path in sorted(paths) if not _is_temporary(path.rpartition("/")[2])}

    def state(self, layer: str, path: str) -> State:
        """What became of a file that we wrote."""
        where = self._at(path)
        if not self.is_file(path):
            return "changed" if self.exists(path) and not self.is_link(path) else "missing"
        mode, _, digest = self.line(_record(layer, path)).partition(" ")
        is_same = (
            bool(digest) and self._disk.digest(where) == digest and f"{self._disk.mode(where):o}" == mode.lstrip("0")
        )
        return "ok" if is_same else "changed"

    def mode(self, path: str) -> int:
        """The permission bits of a file; of a link its own."""
        return self._disk.mode(self._at(path))

    def digest(self, path: str) -> str:
        """The SHA-256 of a file's content, links followed.

        :raises OSError: it can't be read.
        """
        return self._disk.digest(self._at(path))

    # Steps that must follow.

    def is_pending(self, step: str) -> bool:
        """Whether a step must still follow what was written, maybe by another run."""
        return self.exists(f"{HOME}/pending/{step}")

    def set_pending(self, step: str) -> None:
        """Notes that a step must follow."""
        self.note(f"{HOME}/pending/{step}", b"")

    def done_with(self, step: str) -> None:
        """What the step has made is put on the disk, and its note goes."""
        if self.is_pending(step):
            self.flush_all()
            self.remove(f"{HOME}/pending/{step}")

    def about_to_change(self) -> None:
        """Called before anything is written or taken away."""
        if self.followed_by and not self.is_pending(self.followed_by):
            self._step_noted = True
            self.set_pending(self.followed_by)

    def begin_step(self, step: str) -> None:
        """What the step makes is half-made from now on, until `done_with`."""
        self._step_begun = step
        self.set_pending(step)

    def flush_all(self) -> None:
        """The file systems of all that we write: programs that make something of it don't flush, and a boot loader
        reads without the journal.

        :raises OSError: a disk doesn't take it.
        """
        places = [self.name(place) for place in _FLUSHED if self.is_folder(place)]
        done = self._run.ask("sync", "-f", *places, seconds=600)
        if done.status != 0:
            message = as_text(done.error).strip() or f"sync ended with {done.status}"
            raise OSError(errno.EIO, message, " ".join(places))

    # Plans.

    def plan_file(self, how: How, what: str, content: bytes | None = None) -> None:
        """Notes what would be done.

        :param content: of the file by then, for its diff; None: it has none.
        """
        diff = "" if content is None else _diff(what, self.read(what, ANSWER_BYTES), content)
        self._planned.append(PlannedFile(how, what, diff))
        self.changed = True

    def plan(self) -> Planned:
        """All that was noted."""
        return Planned(tuple(self._planned))

    # After a failure every file is as it was when the run began; after a success nothing of the run is left.

    def remember(self, *paths: str) -> None:
        """Keeps files as they are for `undo`, unless this run has done so already. In the order in which they are going
        to be written: `undo` goes the other way. The copy is on the file's own file system, so that putting it back is
        a change of name, for which no disk is too full; and not beside the file, since initramfs-tools takes whatever
        lies there.
        """
        for path in paths:
            if path in self._undo:
                continue
            backup = None
            if self.exists(path):
                place = next((place for place in _PLACES if path.startswith(f"{place}/")), HOME)
                backup = self._at(f"{place}/{_UNDO}/{len(self._undo)}")
                self._need_folder(backup.parent)
                self._disk.remove(backup)
                self._disk.copy(self._at(path), backup)
            self._undo[path] = backup

    def undo(self) -> None:
        """After a failure: every file that this run touched is as it was when the run began. Should one not let itself
        be put back, it ends there: the record and the copy that belong to it stay for the next run.
        """
        if self._undo and self._step_begun:
            with suppress(OSError, Failure):  # maybe done already, of what is put back now
                self.set_pending(self._step_begun)
        for path, backup in reversed(self._undo.items()):
            try:
                if backup is None:
                    self.remove(path)
                else:
                    self._put_back(backup, path)
            except (OSError, Failure):  # a container may be gone meanwhile
                if not self._is_as_before(backup, path):
                    self.not_put_back = path
                    break
        self._undo.clear()
        self.at_finish.clear()
        with suppress(OSError, Failure):
            self.clear_leftovers()
            # Nothing was made of what isn't there any more.
            if self._step_noted and not self._step_begun and not self.not_put_back:
                self.done_with(self.followed_by)
            self._tidy()
        self._step_noted = False
        with suppress(OSError, Failure):
            self.flush_all()

    def _put_back(self, backup: Path, path: str) -> None:
        try:
            self._disk.rename(backup, self._at(path))
        except OSError as error:
            if error.errno != errno.EXDEV:  # it is on another file system than its copy
                raise
            self._copy(backup, path)
        else:
            self._disk.flush(self._at(path).parent)

    def _is_as_before(self, backup: Path | None, path: str) -> bool:
        """Whether a file was never changed, such as one that is immutable."""
        with suppress(OSError, Failure):
            looks = (self._disk.mode, self._disk.digest)
            return backup is not None and all(look(backup) == look(self._at(path)) for look in looks)
        return False

    def finish(self) -> None:
        """After a success: what is answered is on the disk, and nothing is to be undone any more.

        :raises OSError: a disk doesn't take it.
        """
        if self.changed:
            self.flush_all()
        self._undo.clear()
        while self.at_finish:
            self.at_finish.pop(0)()
        self._step_noted, self._step_begun = False, ""
        self._clear_own()
        with suppress(OSError):  # the next run tidies up as well
            self._tidy()

    def clear_leftovers(self) -> None:
        """Takes away what lies beside files only while a run works, also of runs that were cut short. The lock is
        taken.
        """
        self.clear_below(*_LEFT)
        self._clear_own()

    def clear_below(self, *places: str) -> None:
        """The same of what lies beside files below these places."""
        for path in self._disk.left_below([self._at(place) for place in places], self._at("/etc/pve"), _is_temporary):
            self._unlink(path)

    def _unlink(self, path: Path) -> None:
        try:
            if self._disk.exists(path):
                self._disk.remove_all(path)
                self._disk.flush(path.parent)  # after a power cut no run may come that would take it away once more
        except OSError as error:
            self._log.say(f"note: {path}, which an earlier run left, could not be removed: {error.strerror}")

    def _clear_own(self) -> None:
        for temporary in self._temporaries:
            self._unlink(temporary)
        self._temporaries.clear()
        for place in _PLACES:
            self._unlink(self._at(f"{place}/{_UNDO}"))

    def _tidy(self) -> None:
        """Takes away what is empty: folders that we made, and our own state."""
        noted = self._lines(f"{HOME}/dirs")
        left = []
        for path in sorted(noted, reverse=True):
            folder = self._at(path)
            if not self._disk.is_folder(folder):
                continue
            try:
                self._disk.remove_folder(folder)
            except OSError:
                left.append(path)
            else:
                self._disk.flush(folder.parent)
        if noted and not left:
            self.remove(f"{HOME}/dirs")
        elif sorted(left) != noted:
            self._write_lines(f"{HOME}/dirs", sorted(left))
        for below in self._disk.folders_of(self._at(HOME)):
            if not self._disk.names(below):
                with suppress(OSError):
                    self._disk.remove_folder(below)
                    self._disk.flush(below.parent)

    # What was there before us: kept whole, known by its sum, given back.

    def _claim(self, layer: str, path: str, record: str) -> None:
        """Notes that a file is about to be written, and keeps the original."""
        self.about_to_change()
        self.keep_edit(layer, path)
        where = _record(layer, path)
        self.remember(f"{HOME}/kept{path}", f"{HOME}/sums{path}", where, path)
        if not self.exists(where):
            if self.exists(path):
                self.keep(path)
            else:
                self.forget(path)
        # With the one before: until the file is written, it still is what that says, and no edit.
        earlier = next((line for line in self._lines(where) if line != record), None)
        self._need_folder(self._at(where).parent)
        self._write_lines(where, [record, *([earlier] if earlier else [])])
        self.make_folder(path.rpartition("/")[0])

    def keep(self, path: str, source: str = "") -> None:
        """To be given back. Without a sum a copy counts as whole: the old sum goes first.

        :param source: what the path, a link, leads to, where that is to be kept.
        """
        self.remove(f"{HOME}/sums{path}")
        self.copy(source or path, f"{HOME}/kept{path}")
        self.note_kept(path)

    def note_kept(self, path: str) -> None:
        """The sum of what is kept."""
        self._need_folder(self._at(f"{HOME}/sums{path}").parent)
        self._write_lines(f"{HOME}/sums{path}", [self._kept_sum(path)])

    def forget(self, path: str) -> None:
        """Nothing is kept for it."""
        self.remove(f"{HOME}/kept{path}", f"{HOME}/sums{path}")

    def _kept_sum(self, path: str) -> str:
        """The SHA-256 of the copy's bytes; of a link that of where it leads to, with a newline."""
        kept = f"{HOME}/kept{path}"
        if self.is_link(kept):
            return hashlib.sha256(self.target(kept).encode("utf-8", "surrogateescape") + b"\n").hexdigest()
        return self._disk.digest(self._at(kept))

    def need_kept(self, path: str) -> None:
        """:raises Failure: the bytes to be given back aren't the ones that were kept."""
        kept = f"{HOME}/kept{path}"
        sums = self.line(f"{HOME}/sums{path}")
        if not self.exists(f"{HOME}/sums{path}") or (self.exists(kept) and self._kept_sum(path) == sums):
            return
        raise Failure(
            f"to give back {path} as it was before this program",
            f"its copy, {HOME}/kept{path}, isn't what was kept there",
            f"written back it would do damage; {path} stays as it is now",
            f"put the file as it was (from a backup) in the place of that copy, remove {HOME}/sums{path}, and run the "
            f"same again; to keep {path} as it is now, remove also {HOME}/kept{path} and {HOME}/files/*{path}",
        )

    def is_edited(self, layer: str, path: str) -> bool:
        """Whether others have made something else of a file of homelab's."""
        record = _record(layer, path)
        if not self.is_file(path) or not self.exists(record):
            return False
        digest = self._disk.digest(self._at(path))
        # One that we wrote, or what was there before us: a run that was cut short hadn't come further.
        if any(line.endswith(f" {digest}") for line in self._lines(record)):
            return False
        return not (self.exists(f"{HOME}/kept{path}") and digest == self._kept_sum(path))

    def keep_edit(self, layer: str, path: str) -> None:
        """What others made of a file of homelab's is kept: a copy, where backups lie. Named by its content, so
        that a run that was cut short makes no second one.
        """
        if not self.is_edited(layer, path):
            return
        copy = f"{EDITS}{path}.{self._disk.digest(self._at(path))[:8]}"
        if not self.exists(copy):
            self.copy(path, copy)
        self._log.say(f"note: {path} was edited by hand; the edited file is kept in {copy}")

    def _lines(self, path: str) -> list[str]:
        return self.need_text(path).splitlines()

    def _write_lines(self, path: str, lines: Iterable[str]) -> None:
        self.write(path, "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"), 0o600)

    def _temporary(self, path: str) -> Path:
        """A name beside it. It starts with a dot and ends in none of the suffixes that GRUB, initramfs-tools or
        modprobe read.
        """
        where = self._at(path)
        temporary = where.with_name(f".{where.name}{_TEMPORARY}")
        self._temporaries.append(temporary)
        return temporary

    def _in_place(self, temporary: Path, path: str) -> None:
        self._disk.rename(temporary, self._at(path))
        self._disk.flush(self._at(path).parent)


def _record(layer: str, path: str) -> str:
    return f"{HOME}/files/{layer}{path}"


def _is_pve(path: str) -> bool:
    return f"{path}/".startswith("/etc/pve/")


def _is_temporary(name: str) -> bool:
    # The second is what grub-mkconfig makes first.
    return name.startswith(".") and name.endswith((_TEMPORARY, f"{_TEMPORARY}.new"))


def _diff(path: str, old: bytes | None, new: bytes) -> str:
    """A unified diff, as text; of what is none, such as an archive, there is none."""
    if b"\0" in new:
        return ""
    before, after = (as_text(content or b"").splitlines(keepends=True) for content in (old, new))
    lines = []
    for line in difflib.unified_diff(before, after, path, path):
        lines.append(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n")
    return "".join(lines).rstrip("\n")
