"""Plain properties as the dataclasses of a resource's declaration. The one place where that is done."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")


@functools.cache
def adapter_of(kind: type[Any]) -> TypeAdapter[Any]:
    """What reads properties as that dataclass; made once in a process, since that takes milliseconds."""
    return TypeAdapter(kind)


def read_as(kind: type[T], properties: Mapping[str, Any]) -> T:
    """Properties as a dataclass of a resource's declaration; what else is among them is left out.

    :raises pydantic.ValidationError: they don't fit, which is a mistake in this program.
    """
    instance: T = adapter_of(kind).validate_python(properties)  # type: ignore[arg-type]
    return instance
