"""Public SSH keys as the settings hold them: one line, as `ssh-keyscan` prints them."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from homelab.fields.types import InWords, plain

_HOST_KEY = re.compile(
    r"(?:ssh-ed25519 AAAA[\w+/]{64}|(?:ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)) AAAA[\w+/]+=*)(?: .*)?", re.ASCII
)


def public_key(value: str) -> str:
    """A public key without blanks around it. Whether one of another kind than the first is whole, asyncssh tells where
    a host is logged into.

    :raises ValueError: it isn't of the form of a key of a known type.
    """
    key = plain(value.strip())
    if not _HOST_KEY.fullmatch(key):
        raise ValueError(
            "expected a public key such as `ssh-ed25519 AAAA…`, all of it (see `ssh-keyscan -t ed25519 ADDRESS`): of "
            f"80 characters, where this text has {len(key)}"
        )
    return key


PublicKey = Annotated[str, InWords("public SSH key"), AfterValidator(public_key)]
