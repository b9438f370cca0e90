"""A host that is read: its files and programs, and what decides something and can't be read."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable
from typing import TypeVar

from remote_scripts.shared import kernel, pmxcfs
from remote_scripts.shared.pci import DEVICES
from remote_scripts.shared.time_limit import within_limit
from remote_scripts.tools import disk
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.run import Done
from remote_scripts.tools.system import System

T = TypeVar("T")
#: The address of a PCI function; a domain has more than four digits behind Intel's Volume Management Device.
ADDRESS = r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"
GROUPS = "/sys/kernel/iommu_groups"
# No file and no answer of a program that is read here is longer, in bytes.
_MOST = 1 << 26
_ABOVE_DEEPEST = re.compile(rf".*/({ADDRESS})(?:/|$)")


class Source:
    """One reading of a host.

    :param system: the host.
    """

    def __init__(self, system: System) -> None:
        self.system = system
        self.files = system.files
        self.run = system.run
        #: Path -> why: files that decide something and can't be read whole. Who decides takes none of them for "nothing
        #: there".
        self.unreadable: dict[str, str] = {}
        # Proxmox VE's file system doesn't answer: it isn't waited for again.
        self._pve_hangs = False

    # What decides something.

    def note(self, path: str, why: str) -> None:
        """Notes that a file can't be read whole; of a path the first reason counts."""
        self.unreadable.setdefault(path, why)

    def needed(self, path: str, limit: int = _MOST) -> str | None:
        """What a file has; None: it isn't there, or can't be read to its end, which is noted.

        :param limit: in bytes; the beginning of a longer one, which is noted, too.
        """
        content = self.needed_bytes(path, limit)
        return None if content is None else _decoded(content)

    def needed_bytes(self, path: str, limit: int = _MOST) -> bytes | None:
        """The same in bytes."""
        where = self.files.at(path)

        def read() -> bytes | None:
            if not where.is_file():  # a pipe would be waited for
                return None
            with where.open("rb") as file:
                return disk.read_up_to(file, limit)

        def look() -> bytes | None:
            content = pmxcfs.steady(where, read) if path.startswith("/etc/pve/") else read()
            if content is None and os.path.lexists(where):
                self.note(path, "it is no file")
            return content

        try:
            content = self._of(path, look, None)
        except FileNotFoundError:  # it has gone meanwhile
            return None
        except OSError as error:
            self.note(path, error.strerror or str(error))
            return None
        if content is not None and len(content) >= limit:
            self.note(path, f"it is longer than {limit} bytes")
        return content

    def passed_on(self, path: str) -> str:
        """What a file that decides something has, for an answer; empty: it isn't there, or can't be read."""
        return (self.needed(path) or "").rstrip("\n")

    def noting(self, path: str, work: Callable[[], T], otherwise: T) -> T:
        """What `work` finds.

        :param path: what is noted where `work` says that it can't be told.
        """
        try:
            return self._of(path, work, otherwise)
        except Failure as failure:
            self.note(path, failure.found)
        except OSError as error:
            self._note_error(path, error)
        return otherwise

    def _note_error(self, path: str, error: OSError) -> None:
        name = str(error.filename or "").removeprefix(str(self.system.root).rstrip("/"))
        self.note(name or path, error.strerror or str(error))

    def _note_folder(self, path: str, error: OSError) -> None:
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            self._note_error(path, error)

    def _of(self, path: str, work: Callable[[], T], otherwise: T) -> T:
        """What `work` finds at a path. Proxmox VE's file system may hang: that is noted, and it isn't asked again."""
        if not f"{path}/".startswith("/etc/pve/"):
            return work()
        if self._pve_hangs:
            return otherwise
        try:
            return within_limit(work)
        except TimeoutError as error:
            self._pve_hangs = True
            self.note(path, str(error))
            return otherwise

    # What tells something where it is there.

    def text(self, path: str) -> str:
        """What a file has, without the newlines at its end; empty where it can't be read."""
        return "\n".join(self.lines(path)).rstrip("\n")

    def lines(self, path: str) -> list[str]:
        """The lines of a file; none where it can't be read."""
        return lines_of(_decoded(self._of(path, lambda: self.files.read(path, _MOST), None) or b""))

    def word(self, path: str) -> str | None:
        """The first line of a file, without blanks around it; None: it can't be read."""
        content = self.needed_bytes(path, 4097)
        return None if content is None else _decoded(content).partition("\n")[0].strip(" \t")

    def first(self, path: str, pattern: str) -> str:
        """What the first group of a regular expression is in the first line that begins so; empty: there is none."""
        return next((match[1] for line in self.lines(path) if (match := re.match(pattern, line))), "")

    def names(self, path: str) -> list[str]:
        """What is in a folder, sorted, but for hidden files; nothing where it can't be read, which is noted."""
        nothing: list[str] = []
        try:
            names = self._of(path, lambda: os.listdir(self.files.at(path)), nothing)
        except OSError as error:
            self._note_folder(path, error)
            return nothing
        return sorted(name for name in names if not name.startswith("."))

    def below(self, path: str, *, hidden: bool = False) -> list[str]:
        """The files at or below a path, sorted; links in it aren't followed. A folder that can't be read is noted.

        :param hidden: also those whose name begins with a dot.
        """
        where = self.files.at(path)
        if where.is_file():
            return [path]
        below = disk.below(where, on_error=lambda error: self._note_folder(path, error))
        files = (file for file in below if hidden or not file.name.startswith("."))
        is_pve = path.startswith("/etc/pve/")  # where a file that is being replaced is none for a moment
        found = (file for file in files if not file.is_symlink() and (is_pve or file.is_file()))
        return sorted(path + str(file)[len(str(where)) :] for file in found)

    def exists(self, path: str) -> bool:
        """Whether it is there; a link that leads nowhere isn't."""
        return self._of(path, lambda: os.path.exists(self.files.at(path)), False)

    def is_file(self, path: str) -> bool:
        """Whether it is a file, or a link to one."""
        return self._of(path, lambda: os.path.isfile(self.files.at(path)), False)

    def is_folder(self, path: str) -> bool:
        """Whether it is a folder, or a link to one."""
        return self._of(path, lambda: os.path.isdir(self.files.at(path)), False)

    def is_link(self, path: str) -> bool:
        """Whether it is a link, wherever it leads."""
        return os.path.islink(self.files.at(path))

    def link(self, path: str) -> str:
        """Where a link leads, as it says; empty: there is none."""
        try:
            return self._of(path, lambda: os.readlink(self.files.at(path)), "")
        except OSError:
            return ""

    def linked(self, path: str) -> str:
        """The name of what a link leads to; empty: there is none."""
        return self.link(path).rpartition("/")[2]

    def real(self, path: str) -> str:
        """The path without links."""
        return self.files.real(path)

    def modprobe_files(self) -> list[str]:
        """The files in which modules get options, in modprobe's order, but for the initramfs's."""
        return kernel.modprobe_files(self.names)

    def functions(self) -> list[str]:
        """The addresses of all PCI functions, sorted."""
        return self.names(DEVICES)

    def groups(self) -> list[str]:
        """The numbers of the IOMMU groups. VFIO makes some of its own, of mediated devices or without an IOMMU."""
        numbers = [name for name in self.names(GROUPS) if name.isdecimal()]
        return [number for number in numbers if self.word(f"{GROUPS}/{number}/name") != "vfio-noiommu"]

    def class_of(self, address: str) -> str:
        """Such as 0x030000; empty where it can't be read."""
        return self.word(f"{DEVICES}/{address}/class") or ""

    def ask(self, *arguments: str) -> Done:
        """What a program says, however much it is."""
        return self.run.ask(*arguments, limit=_MOST)

    @functools.cached_property
    def kernel_says(self) -> list[str]:
        """The kernel's log, as `kernel.log`."""
        return kernel.log(self.system)


def _decoded(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def lines_of(text: str) -> list[str]:
    """Its lines; bytes that aren't UTF-8 stay what they are."""
    return text.removesuffix("\n").split("\n") if text else []


def deepest(path: str) -> str:
    """The last PCI function on a path in sysfs; empty: there is none."""
    match = _ABOVE_DEEPEST.match(path)
    return match[1] if match else ""


def head_and_tail(lines: Iterable[str], most: int) -> str:
    """These lines; of more than so many the first and the last ones."""
    given = [*lines]
    if len(given) > most:
        half = most // 2
        given = [*given[:half], f"… {len(given) - most} lines are left out here …", *given[-half:]]
    return "\n".join(given).rstrip("\n")
