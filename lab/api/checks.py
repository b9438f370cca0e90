"""The parameters of a request, against what its operation takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from homelab.guest.options import Parameter

from .errors import bad_parameters
from .options import check_all, check_value
from .reference import Operation

_KEPT = ("text", "one of")


def verify(operation: Operation, given: Mapping[str, list[str]]) -> dict[str, Any]:
    """Check a request's parameters and give them their types.

    Args:
        given: texts by name, as many as the request had of that name.

    Returns:
        By name: int (a boolean is 0 or 1), float, str, or list of str.

    Raises:
        ApiError: 400, with a message for each parameter that is wrong.
    """
    known = operation.parameters
    lists = {name: values for name, values in given.items() if name in known and known[name].kind == "list"}
    # One that may come once only is, sent twice, one text with a NUL between: a list, for formats that are lists.
    texts = {name: "\0".join(values) for name, values in given.items() if name not in lists}
    errors = check_all({name: p for name, p in known.items() if p.kind != "list" or name not in lists}, texts)
    for name, values in lists.items():
        errors |= _check_items(known[name], values)
    if errors:
        raise bad_parameters(errors)
    return {**{name: typed(known[name], value) for name, value in texts.items()}, **lists}


def _check_items(parameter: Parameter, values: list[str]) -> dict[str, str]:
    item = Parameter(parameter.name, "text", format=parameter.format)
    found = {}
    for number, value in enumerate(values):
        path = f"{parameter.name}[{number}]"
        if message := check_value(item, value, path):
            found[path] = message
    return found


def typed(parameter: Parameter, value: str) -> Any:
    """A text as the type that its parameter has."""
    if parameter.kind in _KEPT:
        return value
    number = float(value)
    return int(number) if parameter.kind != "number" or number.is_integer() else number
