"""Property values as plain Python, and back. The one place where that is done.

What arrives is JSON. As this provider takes neither secrets nor outputs (serve.py), the engine sends plain values: it
takes secrets out, and marks what comes back under the same key again. Only the provider's own inputs, which are sent
before it has said so, have a secret in a dictionary with a signature. A value that a preview doesn't know yet is a
string of the protocol's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

# As pulumi.runtime.rpc has them: what isn't known yet, and the key of the signature of what isn't plain JSON.
_SENTINEL, _SIGNATURE = "04da6b54-80e4-46f7-96ec-b56ff0331ba9", "4dabf18193072939515e22adb298388d"

#: A resource's properties, or a part of them, as the engine has them: JSON, whose form the declaration of each resource
#: knows.
Properties = dict[str, Any]


class Unknown:
    """What a preview doesn't know yet. It is equal to nothing, not even to itself."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return False


UNKNOWN: Final = Unknown()


def plain(content: Any) -> Any:
    """A value of the protocol as plain Python, without secrets; of a resource's properties, a dictionary. Whole numbers
    become int: the protocol has floats only.
    """
    if content == _SENTINEL:
        return UNKNOWN
    if isinstance(content, float) and content.is_integer():
        return int(content)
    if isinstance(content, Mapping):
        return plain(content["value"]) if _SIGNATURE in content else {key: plain(content[key]) for key in content}
    if isinstance(content, Sequence) and not isinstance(content, str):
        return [plain(item) for item in content]
    return content


def valued(content: Any) -> Any:
    """Plain Python as a message of the protocol takes it."""
    if isinstance(content, Unknown):
        return _SENTINEL
    if isinstance(content, Mapping):
        return {str(key): valued(item) for key, item in content.items()}
    if isinstance(content, Sequence) and not isinstance(content, str):
        return [valued(item) for item in content]
    return content
