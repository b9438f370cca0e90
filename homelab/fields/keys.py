"""Public SSH keys, as `ssh-keyscan` prints them."""

from __future__ import annotations

import base64
import re
from typing import Annotated

from pydantic import AfterValidator

from homelab.fields.types import InWords, plain

_HOST_KEY = re.compile(r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)) ([A-Za-z0-9+/]+=*)(?: .*)?")
# The bytes of each part of a key after its type (RFC 4253, 5656 and 8709); None: any number, of a number.
_KEY_PARTS: dict[str, tuple[int | None, ...]] = {
    "ssh-ed25519": (32,),
    "ssh-rsa": (None, None),
    "ecdsa-sha2-nistp256": (8, 65),
    "ecdsa-sha2-nistp384": (8, 97),
    "ecdsa-sha2-nistp521": (8, 133),
}


def _is_public_key(value: str) -> bool:
    """Whether a text is a whole key, `type base64 [comment]`: the bytes repeat the type, and have all parts of that
    type and nothing more."""
    match = _HOST_KEY.fullmatch(value.strip())
    if match is None:
        return False
    try:
        rest = base64.b64decode(match[2], validate=True)
    except ValueError:
        return False
    parts = []
    while rest:
        length = int.from_bytes(rest[:4])
        parts.append(rest[4 : 4 + length])
        if len(rest) < 4 + length or length == 0:
            return False
        rest = rest[4 + length :]
    lengths = _KEY_PARTS[match[1]]
    return (
        parts[:1] == [match[1].encode()]
        and [len(part) if length is not None else None for part, length in zip(parts[1:], lengths, strict=False)]
        == list(lengths)
        and len(parts) == 1 + len(lengths)
    )


def public_key(value: str) -> str:
    """A public key without blanks around it.

    :raises ValueError: it isn't a whole key of a known type.
    """
    plain(value.strip())
    if not _is_public_key(value):
        raise ValueError(
            "expected a public key such as `ssh-ed25519 AAAA…`, all of it (see `ssh-keyscan -t ed25519 ADDRESS`)"
        )
    return value.strip()


PublicKey = Annotated[str, InWords("public SSH key"), AfterValidator(public_key)]
