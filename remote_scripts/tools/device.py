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
