"""Public SSH keys as the settings hold them: one line, as `ssh-keyscan` prints them."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from homelab.fields.types import InWords, plain

_ED25519 = "ssh-ed25519 AAAA[A-Za-z0-9+/]{64}"
_HOST_KEY = re.compile(f"(?:{_ED25519}|(?:ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)) AAAA[A-Za-z0-9+/]+=*)(?: .*)?")


def public_key(value: str) -> str:
    """A public key without blanks around it. Whether one of another kind than the first is whole, asyncssh tells where
    a host is logged into.

    :raises ValueError: it isn't of the form of a key of a known type.
    """
    key = plain(value.strip())
    if not _HOST_KEY.fullmatch(key):
        raise ValueError(
            "expected a public key such as `ssh-ed25519 AAAA…` (see `ssh-keyscan -t ed25519 ADDRESS`), all of its "
            f"80 characters: this text has {len(key)}"
        )
    return key


PublicKey = Annotated[str, InWords("public SSH key"), AfterValidator(public_key)]
