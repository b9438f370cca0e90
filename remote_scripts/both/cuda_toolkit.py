"""What the layer cuda_toolkit is asked, and what it answers."""

from dataclasses import dataclass

from remote_scripts.shared.software import Software


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`packages`, `beside`: NAME or NAME=PATTERN, the latter of the libraries; `release`: 12.8 or 12.8.1; `nvcc`: the
    path of its compiler.
    """

    software: Software
    packages: tuple[str, ...]
    release: str
    nvcc: str
    beside: tuple[str, ...] = ()

    @property
    def short(self) -> str:
        """Without the number of its update: 12.8."""
        return ".".join(self.release.split(".")[:2])


@dataclass(frozen=True)
class Answer:
    """`packages`: those that were added and are there."""

    release: str
    nvcc: str
    packages: tuple[str, ...]
    changed: bool
