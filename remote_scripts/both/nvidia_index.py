"""What the layer nvidia_index is asked, and what it answers."""

from dataclasses import dataclass

from remote_scripts.both.apt import Repository
from remote_scripts.both.software import Software


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`repositories`: of NVIDIA's, for the distribution of a guest that isn't there yet; `names`: NAME or NAME=PATTERN
    of packages that come from them alone."""

    software: Software
    repositories: tuple[Repository, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """`against`: what they don't offer, and what they offer in its place, a line each."""

    against: tuple[str, ...]
