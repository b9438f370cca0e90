"""What the layer checksums is asked, and what it answers."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`url`: of a file of checksums."""

    url: str


@dataclass(frozen=True)
class Answer:
    """`sums`: the file's text."""

    sums: str
