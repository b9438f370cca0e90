"""What was noted on a host, read back: that it can't be read is never taken for "nothing there"."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Generic, TypeVar

from remote_scripts.tools.errors import UnreadableError
from remote_scripts.tools.files import Files
from remote_scripts.tools.plain import of_plain, to_plain

T = TypeVar("T")
# What is kept of a configuration may be as long as Proxmox VE takes one.
_BYTES = 1 << 24


@dataclass(frozen=True)
class Note(Generic[T]):
    """A value in a file below /var/lib/homelab, as JSON. `form`: a dataclass (tools/plain.py)."""

    path: str
    form: type[T]

    def read(self, files: Files) -> T | None:
        """What is noted; None: nothing.

        :raises UnreadableError: it can't be read, or is of another form.
        """
        content = files.need(self.path, _BYTES)
        try:
            return None if content is None else of_plain(self.form, json.loads(content), "it")
        except ValueError as error:
            raise UnreadableError(self.path, "it isn't as this version of homelab writes it") from error

    def write(self, files: Files, value: T) -> None:
        """Notes it, on the disk when this returns.

        :raises OSError: it isn't on the disk.
        """
        files.need_folder(self.path.rpartition("/")[0])
        files.write(self.path, json.dumps(to_plain(value)).encode(), 0o600)


def pairs(text: str) -> dict[str, str]:
    """Lines `KEY VALUE`; of two with the same key the first counts."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        values.setdefault(key, value.strip())
    return values
