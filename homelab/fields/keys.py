"""Public SSH keys, as `ssh-keyscan` prints them."""

from __future__ import annotations

import base64
import re
from typing import Annotated

from pydantic import AfterValidator

from homelab.fields.types import InWords, plain

_HOST_KEY = re.compile(r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)) ([A-Za-z0-9+/]+=*)(?: .*)?")
# How many bytes a whole key of a type has (RFC 4253, 5656 and 8709); an RSA key may have any number.
_BYTES = {
    "ssh-ed25519": 51,
    "ecdsa-sha2-nistp256": 104,
    "ecdsa-sha2-nistp384": 136,
    "ecdsa-sha2-nistp521": 172,
}


def _is_public_key(value: str) -> bool:
    """Whether a text is a whole key, `type base64 [comment]`, whose bytes repeat the type."""
    match = _HOST_KEY.fullmatch(value.strip())
    if match is None:
        return False
    try:
        content = base64.b64decode(match[2], validate=True)
    except ValueError:
        return False
    return content[4:].startswith(match[1].encode()) and len(content) == _BYTES.get(match[1], len(content))


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
