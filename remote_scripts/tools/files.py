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
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from remote_scripts.tools import disk
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files_read import GREATEST_BYTES as GREATEST_BYTES
from remote_scripts.tools.files_written import EDITS as EDITS
from remote_scripts.tools.files_written import WrittenFiles, is_temporary
from remote_scripts.tools.log import Log
from remote_scripts.tools.places import HOME as HOME
from remote_scripts.tools.run import Run
from remote_scripts.tools.text import ANSWER_BYTES, as_text

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


class Files(WrittenFiles):
    """The files of one run, and what was there before them; arguments as of `ReadFiles`."""

    def __init__(self, root: Path, log: Log, run: Run, there: disk.Disk | None = None) -> None:
        super().__init__(root, log, run, there)
        #: Nothing is written; what would be is noted for `plan`.
        self.planning = False
        self._planned: list[PlannedFile] = []

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
        return {path: self.state(layer, path) for path in sorted(paths) if not is_temporary(path.rpartition("/")[2])}

    def state(self, layer: str, path: str) -> State:
        """What became of a file that we wrote."""
        if not self.is_file(path):
            return "changed" if self.exists(path) and not self.is_link(path) else "missing"
        noted = self.line(_record(layer, path))
        mode, digest = self._disk.look(self._at(path))
        return "ok" if noted == f"{mode:04o} {digest}" else "changed"

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
        self._disk.need_folder(self._at(where).parent)
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
        self._disk.need_folder(self._at(f"{HOME}/sums{path}").parent)
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
        record = self.need(_record(layer, path))
        if record is None or not self.is_file(path):
            return False
        digest = self._disk.digest(self._at(path))
        # One that we wrote, or what was there before us: a run that was cut short hadn't come further.
        if any(line.endswith(f" {digest}".encode()) for line in record.splitlines()):
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


def _record(layer: str, path: str) -> str:
    return f"{HOME}/files/{layer}{path}"


def _diff(path: str, old: bytes | None, new: bytes) -> str:
    """A unified diff, as text; of what is none, such as an archive, there is none."""
    if b"\0" in new:
        return ""
    before, after = (as_text(content or b"").splitlines(keepends=True) for content in (old, new))
    lines = []
    for line in difflib.unified_diff(before, after, path, path):
        lines.append(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n")
    return "".join(lines).rstrip("\n")
