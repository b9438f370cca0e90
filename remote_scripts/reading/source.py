"""A host that is read: its files and programs, and what decides something and can't be read."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import TypeVar

from remote_scripts.tools import disk, kernel
from remote_scripts.tools.done import Done
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import GREATEST_BYTES
from remote_scripts.tools.pci import DEVICES
from remote_scripts.tools.system import System

T = TypeVar("T")
#: The address of a PCI function; a domain has more than four digits behind Intel's Volume Management Device.
ADDRESS = r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"
GROUPS = "/sys/kernel/iommu_groups"
_FUNCTION = re.compile(ADDRESS)


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
        self.files.asks_pve_once = True

    # What decides something.

    def note(self, path: str, why: str) -> None:
        """Notes that a file can't be read whole; of a path the first reason counts."""
        self.unreadable.setdefault(path, why)

    def needed(self, path: str) -> str | None:
        """What a file has; None: it isn't there, or can't be read to its end, which is noted."""
        content: bytes | None = self.noting(path, lambda: self.files.need(path), None)
        return None if content is None else _decoded(content)

    def passed_on(self, path: str) -> str:
        """What a file that decides something has, for an answer; empty: it isn't there, or can't be read."""
        return (self.needed(path) or "").rstrip("\n")

    def noting(self, path: str, work: Callable[[], T], otherwise: T) -> T:
        """What `work` finds.

        :param path: what is noted where `work` says that it can't be told.
        """
        try:
            return work()
        except OSError as error:
            self._note_error(path, error)
        except Failure as failure:
            self.note(path, failure.found)
        return otherwise

    def _note_error(self, path: str, error: OSError) -> None:
        name = str(error.filename or "").removeprefix(str(self.system.root).rstrip("/"))
        self.note(name or path, error.strerror or str(error))

    # What tells something where it is there.

    def lines(self, path: str) -> list[str]:
        """The lines of a file; none where it can't be read."""
        return lines_of(_decoded(self.files.read(path, GREATEST_BYTES) or b""))

    def word(self, path: str) -> str | None:
        """The first line of a file, without blanks around it; None: it can't be read."""
        content = self.needed(path)
        return None if content is None else content.partition("\n")[0].strip(" \t")

    def first(self, path: str, pattern: str) -> str:
        """What the first group of a regular expression is in the first line that begins so; empty: there is none."""
        return next((match[1] for line in self.lines(path) if (match := re.match(pattern, line))), "")

    def names(self, path: str) -> list[str]:
        """What is in a folder, sorted, but for hidden files; nothing where it can't be read, which is noted."""
        names: list[str] = self.noting(path, lambda: self.files.need_names(path), [])
        return [name for name in names if not name.startswith(".")]

    def below(self, path: str, *, hidden: bool = False) -> list[str]:
        """The files at or below a path, sorted; links in it aren't followed. A folder that can't be read is noted.

        :param hidden: also those whose name begins with a dot.
        """
        where = self.files.at(path)
        if not where.is_dir():
            return [path] if where.is_file() else []
        below = disk.below(where, on_error=functools.partial(self._note_error, path))
        files = (file for file in below if hidden or not file.name.startswith("."))
        found = (file for file in files if not file.is_symlink() and file.is_file())
        return sorted(path + str(file)[len(str(where)) :] for file in found)

    def link(self, path: str) -> str:
        """Where a link leads, as it says; empty: there is none."""
        try:
            return self.files.target(path)
        except OSError:
            return ""

    def linked(self, path: str) -> str:
        """The name of what a link leads to; empty: there is none."""
        return self.link(path).rpartition("/")[2]

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
        return self.run.ask(*arguments, limit=GREATEST_BYTES)

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
    return next(reversed(functions_in(path)), "")


def functions_in(path: str) -> list[str]:
    """The PCI functions that a path in sysfs goes through."""
    return [part for part in path.split("/") if _FUNCTION.fullmatch(part)]


def head_and_tail(lines: Iterable[str], most: int) -> str:
    """These lines; of more than so many the first and the last ones."""
    given = [*lines]
    if len(given) > most:
        half = most // 2
        given = [*given[:half], f"… {len(given) - most} lines are left out here …", *given[-half:]]
    return "\n".join(given).rstrip("\n")
