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
    """A property value as plain Python, without secrets and dependencies. Whole numbers become int: the protocol has
    floats only.
    """
    content = value.value
    if isinstance(content, Computed) or content == _SENTINEL:
        return UNKNOWN
    if isinstance(content, float) and content.is_integer():
        return int(content)
    if isinstance(content, Mapping):
        return {key: plain(item) for key, item in content.items()}
    if isinstance(content, Sequence) and not isinstance(content, str):
        return [plain(item) for item in content]
    return content


def plain_map(values: Mapping[str, PropertyValue]) -> Properties:
    """The same for a resource's properties."""
    return {key: plain(value) for key, value in values.items()}


def valued(content: Any) -> PropertyValue:
    """Plain Python as a property value."""
    if isinstance(content, Unknown):
        return PropertyValue(_SENTINEL)
    if isinstance(content, int) and not isinstance(content, bool):
        return PropertyValue(float(content))  # PropertyValue refuses int
    if isinstance(content, Mapping):
        return PropertyValue({str(key): valued(item) for key, item in content.items()})
    if isinstance(content, Sequence) and not isinstance(content, str):
        return PropertyValue([valued(item) for item in content])
    return PropertyValue(content)


def valued_map(properties: Mapping[str, Any]) -> dict[str, PropertyValue]:
    """The same for a resource's properties."""
    return {key: valued(value) for key, value in properties.items()}
