"""What was noted on a host, read back: that it can't be read is never taken for "nothing there"."""

from __future__ import annotations

from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System
from remote_scripts.tools.text import ANSWER_BYTES


def need(system: System, path: str, wanted: str, why: str, limit: int = ANSWER_BYTES) -> bytes:
    """What a file has; nothing where it isn't there.

    :param wanted: for the message, as `why`.
    :raises Failure: it is there, and can't be read.
    """
    try:
        return system.files.need(path, limit) or b""
    except OSError as error:
        raise unreadable(path, wanted, why) from error


def unreadable(path: str, wanted: str, why: str) -> Failure:
    """Something can't be read."""
    return Failure(
        wanted,
        f"{path} can't be read",
        why,
        f"see on the host why {path} can't be read (the kernel's log may tell), mend it, then run the same again",
    )


def pairs(text: str) -> dict[str, str]:
    """Lines `KEY VALUE`; of two with the same key the first counts."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        values.setdefault(key, value.strip())
    return values
