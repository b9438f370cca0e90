"""Plain properties as the dataclasses of a resource's declaration, and back. The one place where that is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter

from homelab.provider.plain import Properties

T = TypeVar("T")


_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {}


def adapter_of(kind: type[Any]) -> TypeAdapter[Any]:
    """What reads properties as that dataclass; made once in a process, since that takes milliseconds."""
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def read_as(kind: type[T], properties: Mapping[str, Any]) -> T:
    """Properties as a dataclass of a resource's declaration; what else is among them is left out.

    :raises pydantic.ValidationError: they don't fit, which is a mistake in this program.
    """
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    instance: T = adapter_of(kind).validate_python({key: value for key, value in properties.items() if key in names})
    return instance


def as_properties(instance: Any) -> Properties:
    """A dataclass as properties."""
    return dataclasses.asdict(instance)
