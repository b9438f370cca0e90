"""What a layer that adds repositories is told of each."""

from __future__ import annotations

from dataclasses import dataclass


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
