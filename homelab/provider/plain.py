"""Property values as plain Python, and back. The one place where that is done.

With `accept_secrets=False` and `accept_outputs=False` (serve.py) the engine sends plain values: it takes secrets out,
and marks what comes back under the same key again. What arrives is None, bool, float, str, list and dict; a value that
a preview doesn't know yet is the SDK's sentinel string, which `PropertyValue` doesn't turn into `Computed` (SDK 3.259),
and can't be sent as `Computed` either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pulumi.provider.experimental.property_value import Computed, PropertyValue
from pulumi.runtime.rpc import UNKNOWN as _SENTINEL

#: A resource's properties, or a part of them, as the engine has them: JSON, whose form the declaration of each resource
#: knows.
Properties = dict[str, Any]


class Unknown:
    """What a preview doesn't know yet. It is equal to nothing, not even to itself."""

    def __repr__(self) -> str:
        return "<unknown>"

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return False


UNKNOWN: Final = Unknown()


def plain(value: PropertyValue) -> Any:
    """Secrets and dependencies are left out. Whole numbers become int: the protocol has floats only."""
    found = value.value
    if isinstance(found, Computed) or found == _SENTINEL:
        return UNKNOWN
    if isinstance(found, float) and found.is_integer():
        return int(found)
    if isinstance(found, Mapping):
        return {key: plain(one) for key, one in found.items()}
    if isinstance(found, Sequence) and not isinstance(found, str):
        return [plain(one) for one in found]
    return found


def plain_map(values: Mapping[str, PropertyValue]) -> Properties:
    """The same for a resource's properties."""
    return {key: plain(one) for key, one in values.items()}


def valued(found: Any) -> PropertyValue:
    """The way back."""
    if isinstance(found, Unknown):
        return PropertyValue(_SENTINEL)
    if isinstance(found, int) and not isinstance(found, bool):
        return PropertyValue(float(found))  # PropertyValue refuses int
    if isinstance(found, Mapping):
        return PropertyValue({str(key): valued(one) for key, one in found.items()})
    if isinstance(found, Sequence) and not isinstance(found, str):
        return PropertyValue([valued(one) for one in found])
    return PropertyValue(found)


def valued_map(found: Mapping[str, Any]) -> dict[str, PropertyValue]:
    """The same for a resource's properties."""
    return {key: valued(one) for key, one in found.items()}
