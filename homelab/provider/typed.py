"""Plain properties as the dataclasses of a resource's declaration, and back. The one place where that is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter

from homelab.provider.plain import Properties

T = TypeVar("T")


def read_as(kind: type[T], properties: Mapping[str, Any]) -> T:
    """Properties as a dataclass of a resource's declaration; what else is among them is left out.

    :raises pydantic.ValidationError: they don't fit, which is a mistake in this program.
    """
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    found: T = TypeAdapter(kind).validate_python({key: one for key, one in properties.items() if key in known})
    return found


def written(found: Any) -> Properties:
    """A dataclass as properties."""
    return dataclasses.asdict(found)
