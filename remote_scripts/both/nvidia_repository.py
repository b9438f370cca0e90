"""What the layer nvidia_repository is asked, and what it answers."""

from dataclasses import dataclass

from remote_scripts.shared.software import Software


@dataclass(frozen=True, kw_only=True)
class Repository:
    """`line`: the content of `list_file`; it names `keyring`, which is what is at `key_url`, and the fingerprint of the
    one key in there that apt takes."""

    list_file: str
    line: str
    key_url: str
    keyring: str

    @property
    def url(self) -> str:
        """Its address."""
        return self.line.split()[-2].rstrip("/")


@dataclass(frozen=True, kw_only=True)
class AptFile:
    """A file of apt's configuration."""

    path: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`prerequisites`: packages; `ask`: packages whose versions the answer has."""

    software: Software
    prerequisites: tuple[str, ...] = ()
    repositories: tuple[Repository, ...] = ()
    files: tuple[AptFile, ...] = ()
    ask: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """`offered`: package -> versions that the repositories have, the newest first; `packages`: what was added."""

    offered: dict[str, tuple[str, ...]]
    packages: tuple[str, ...]
    changed: bool
