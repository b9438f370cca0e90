"""What the layer card_libraries is asked, and what it answers."""

from dataclasses import dataclass

from remote_scripts.both.software import Software


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A distribution. `packages`: of `a|b` the one that is installed, else the first that the repositories have;
    `lacking`: what it hasn't got, in the words of a message.
    """

    id: str
    version: str
    packages: tuple[str, ...] = ()
    lacking: str = ""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`choices`: the distributions of which the packages are known."""

    software: Software
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Answer:
    """`packages`: those that were asked for."""

    packages: tuple[str, ...]
    changed: bool
