"""Files that are written whole, and put back after a failure."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from remote_scripts.tools import disk
from remote_scripts.tools.device import Device
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files_read import ReadFiles
from remote_scripts.tools.log import Log
from remote_scripts.tools.places import HOME
from remote_scripts.tools.run import Run
from remote_scripts.tools.text import as_text

#: Where copies lie of homelab's files as others had edited them.
EDITS = "/var/backups/homelab"
#: Where there are homelab's files, and the folders for what they were.
_PLACES = ("/etc", "/usr", HOME)
#: Where a run that was cut short may have left something.
_LEFT = ("/etc", "/usr/local/sbin", "/usr/share/keyrings", "/boot/grub", EDITS, HOME)
_TEMPORARY, _UNDO = ".homelab-tmp", ".homelab-undo"
#: The file systems of all that we write, and of all that is made of it.
_FLUSHED = ("/etc", "/var/lib", "/boot")


class WrittenFiles(ReadFiles):
    """The files that a run writes; arguments as of `ReadFiles`."""

    def __init__(self, root: Path, log: Log, run: Run, there: disk.Disk | None = None) -> None:
        super().__init__(root, log, run, there)
        #: Whether what this run wrote, or would write, differs from what was there.
        self.changed = False
        #: The step that must follow whatever this run changes; empty: none.
        self.followed_by = ""
        #: Where `undo` couldn't put something back.
        self.not_put_back = ""
        #: What has become of the run's changes once it has failed, in words.
        self.outcome = "what this run changed is put back"
        #: Called by `finish`, once nothing is to be undone any more.
        self.at_finish: list[Callable[[], None]] = []
        self._undo: dict[str, Path | None] = {}
        self._numbers = itertools.count()
        self._temporaries: list[Path] = []
        self._step_noted = False
        self._step_begun = ""

    # Writing, one file at a time. Each is on the disk when the call returns.

    def write(self, path: str, content: bytes, mode: int) -> None:
        """A reader sees the old bytes or the new ones, never a mixture."""
        self._disk.write(self._temporary(path), content, mode, self._at(path))

    def copy(self, source: str, path: str) -> None:
        """The same for a copy of a file or link, with owner and times; it may be on another file system."""
        self._copy(self._at(source), path)

    def _copy(self, source: Path, path: str) -> None:
        self._disk.need_folder(self._at(path).parent)
        temporary = self._temporary(path)
        self._disk.copy(source, temporary)
        self._disk.rename(temporary, self._at(path))

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
        self._disk.link(target, temporary)
        self._disk.rename(temporary, self._at(path))

    def remove(self, *paths: str) -> None:
        """Takes files away; what isn't there is no error."""
        self._disk.remove(*map(self._at, paths))

    def move(self, source: str, path: str) -> None:
        """A file that a program has made gets its name, with its bytes on the disk before."""
        self._disk.flush(self._at(source))
        self._disk.rename(self._at(source), self._at(path))

    def remove_tree(self, path: str) -> None:
        """Takes a folder away with all that is in it, without a copy; what isn't there is no error."""
        if self.is_folder(path):
            self._disk.remove_all(self._at(path))

    def note(self, path: str, content: bytes) -> None:
        """A file of our own below /var/lib/homelab, with its folder. Nothing is done where it has that content."""
        if self.read(path, len(content)) != content:
            self._disk.need_folder(self._at(path).parent)
            self.write(path, content, 0o600)

    def need_folder(self, path: str) -> None:
        """Makes a folder and those above it, with nothing noted: of our own below /var/lib/homelab or /run. What is in
        /run/homelab is root's alone.
        """
        mode = 0o700 if f"{path}/".startswith("/run/homelab/") else 0o755
        self._disk.need_folder(self._at(path), mode)

    def make_folder(self, path: str) -> None:
        """The same for a folder of the system: which weren't there is noted, and they go with our last file."""
        missing = []
        while path and not self.is_folder(path):
            missing.append(path)
            path = path.rpartition("/")[0]
        if not missing:
            return
        self._disk.need_folder(self._at(HOME))
        noted = {*missing, *self._lines(f"{HOME}/dirs")}
        self._write_lines(f"{HOME}/dirs", sorted(noted))
        self._disk.need_folder(self._at(missing[0]))

    def make_device(self, path: str, device: Device) -> None:
        """Makes a character device in the place of what is there; it lasts until the next boot."""
        where = self.at(path)
        self._disk.need_folder(where.parent)
        disk.remove(where)
        disk.make_node(where, device.mode, device.major, device.minor)

    def make_work_folder(self, path: str) -> None:
        """An empty folder, for root alone, that is there while a run works; what an earlier one left in it goes."""
        self.remove_tree(path)
        disk.make_folder(self.at(path), 0o700)

    def append(self, path: str, line: bytes, limit: int) -> None:
        """Adds a line to a log. It isn't flushed; of more than `limit` bytes the second half is left."""
        where = self.at(path)
        self._disk.need_folder(where.parent)
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

    # After a failure every file is as it was when the run began; after a success nothing of the run is left.

    def remember(self, *paths: str) -> None:
        """Keeps files as they are for `undo`, unless this run has done so already. In the order in which they are going
        to be written: `undo` goes the other way. The copy is on the file's own file system: restoring it is then a mere
        rename, which works on a full disk, too. It isn't in the file's own folder, since initramfs-tools takes whatever
        lies there.
        """
        for path in paths:
            if path in self._undo:
                continue
            backup = None
            if self.exists(path):
                place = next((place for place in _PLACES if path.startswith(f"{place}/")), HOME)
                backup = self._at(f"{place}/{_UNDO}/{next(self._numbers)}")
                self._disk.need_folder(backup.parent)
                self._disk.copy(self._at(path), backup)
            self._undo[path] = backup

    def leave(self, *paths: str) -> None:
        """`undo` leaves these as they are by then."""
        for path in paths:
            self._undo.pop(path, None)

    def undo(self) -> None:
        """After a failure: every file that this run touched is as it was when the run began. Should one not let itself
        be put back, it ends there: the record and the copy that belong to it stay for the next run.
        """
        if self._undo and self._step_begun:
            self.outcome = "its files are put back, and the next run makes anew what was made of them"
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
                    self.not_put_back, self.outcome = path, "not all that this run changed is put back"
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

    def _is_as_before(self, backup: Path | None, path: str) -> bool:
        """Whether a file was never changed, such as one that is immutable."""
        with suppress(OSError, Failure):
            return backup is not None and self._disk.look(backup) == self._disk.look(self._at(path))
        return False

    def finish(self) -> None:
        """After a success: what is answered is on the disk, and nothing is to be undone any more.

        :raises OSError: a disk doesn't take it.
        """
        if self.changed:
            self.flush_all()
            self.outcome = "what this run had done by then stays, and the next run goes on from there"
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
        for path in self._disk.left_below([self._at(place) for place in places], self._at("/etc/pve"), is_temporary):
            self._unlink(path)

    def _unlink(self, path: Path) -> None:
        try:
            self._disk.remove_all(path)  # after a power cut no run may come that would take it away once more
        except OSError as error:
            self._log.say(f"note: {path}, which an earlier run left, could not be removed: {error.strerror}")

    def _clear_own(self) -> None:
        undo = [self._at(f"{place}/{_UNDO}") for place in _PLACES]
        with suppress(OSError):  # the next run looks again
            for path in self._disk.there([*self._temporaries, *undo]):
                self._unlink(path)
        self._temporaries.clear()

    def _tidy(self) -> None:
        """Takes away what is empty: folders that we made, and our own state."""
        noted = self._lines(f"{HOME}/dirs")
        self._disk.remove_folders([self._at(path) for path in sorted(noted, reverse=True)])
        left = [path for path in noted if self.is_folder(path)]
        if noted and not left:
            self.remove(f"{HOME}/dirs")
        elif sorted(left) != noted:
            self._write_lines(f"{HOME}/dirs", sorted(left))
        self._disk.remove_folders(self._disk.folders_of(self._at(HOME)))

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


def is_temporary(name: str) -> bool:
    """Whether a file is there only while a run works."""
    # The second is what grub-mkconfig makes first.
    return name.startswith(".") and name.endswith((_TEMPORARY, f"{_TEMPORARY}.new"))
