"""A device node of a host."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """A character device: its numbers, and its permission bits."""

    major: int
    minor: int
    mode: int

    @property
    def numbers(self) -> str:
        """MAJOR:MINOR."""
        return f"{self.major}:{self.minor}"


def as_nobody(group: int = 65534) -> tuple[str, ...]:
    """What a program is started with that is to be an ordinary user's, a member of this group alone."""
    return "setpriv", "--reuid", "65534", "--regid", str(group), "--clear-groups"
