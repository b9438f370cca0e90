"""What the layer card_values is asked."""

from dataclasses import dataclass
from typing import Literal

Attribute = Literal["reset_method", "d3cold_allowed", "power/control"]


@dataclass(frozen=True, kw_only=True)
class Value:
    """A value for an attribute of a function. `id`: its vendor:device in four hexadecimal digits each: what is at the
    address now and has another is left alone.
    """

    address: str
    id: str
    attribute: Attribute
    value: str


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`values`: in the order in which they are set."""

    values: tuple[Value, ...] = ()
