"""What a layer ends with where it can't do its work."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable

# At the beginning of a line: what a program says, maybe a container's, is no part of its own.
_NAMES = re.compile(r"\n(?=(?:wanted|found|why|next):)")


class Failure(Exception):
    """A refusal or a failure, as a person reads it. Whatever the run has changed is put back when it is raised.

    :param wanted: what was to be so.
    :param found: what is so.
    :param why: why that matters.
    :param next: what to do.
    """

    #: The exit status of a run that ends with it, by which the program knows those that it answers otherwise.
    status = 1

    def __init__(self, wanted: str, found: str, why: str, next: str) -> None:
        super().__init__(wanted, found, why, next)
        self.wanted, self.found, self.why, self.next = wanted, found, why, next

    def but(self, *, found: str = "", why: str = "", next: str = "") -> Failure:
        """The same, with these parts in the place of its own."""
        return Failure(self.wanted, found or self.found, why or self.why, next or self.next)

    def text(self, clean: Callable[[str], str] = str) -> str:
        """The message, in four lines or more.

        :param clean: makes a part fit to be shown.
        """
        parts = {"wanted: ": self.wanted, "found:  ": self.found, "why:    ": self.why, "next:   ": self.next}
        return "\n".join(name + _NAMES.sub("\n ", clean(part)) for name, part in parts.items())


class NotConfirmed(Failure):
    """A boot that can't be confirmed, for a reason that doesn't go away by itself."""

    status = 3


class NotStarted(Failure):
    """A guest whose start was begun, and has failed."""

    status = 4


class UnreadableError(Failure, OSError):
    """What decides something, and can't be read: that is never taken for "nothing there".

    :param path: of the file or folder.
    """

    def __init__(self, path: str, found: str) -> None:
        super().__init__(
            f"to read {path}",
            found,
            "what can't be read isn't known, and nothing is decided by it; nothing more was changed",
            "see on the host why it can't be read (the kernel's log may tell; of /etc/pve, `systemctl status "
            "pve-cluster`), mend it, then run the same again",
        )
        self.errno, self.strerror, self.filename = errno.EIO, found, path


def in_words(error: Failure | OSError) -> str:
    """What has happened, in one sentence."""
    return error.found if isinstance(error, Failure) else str(error)
