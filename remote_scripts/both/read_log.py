"""What the layer read_log is asked, and what it answers."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`lines`: how many, of the end; `of`: such as `container 901`, whose part of the log is wanted; empty: all."""

    lines: int
    of: str = ""


@dataclass(frozen=True)
class Answer:
    """`log`: empty where nothing was installed."""

    log: str
