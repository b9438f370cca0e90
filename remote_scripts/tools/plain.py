"""JSON as the frozen dataclasses of a layer, and back.

What isn't of the declared form is refused before anything runs. A key that a form doesn't have is passed over: another
version of this program may have written it.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")


class FormError(ValueError):
    """A value that isn't of its declared form; the text says where."""


def of_plain(form: type[T], value: Any, where: str = "request") -> T:
    """The value as an object of a dataclass, or of str, int, bool, None, `tuple[X, ...]`, `dict[str, X]`, a union or a
    literal.

    :param value: as the json module has it.
    :param where: what it is, for the error.
    :raises FormError: it is of another form.
    """
    return typing.cast(T, _of_plain(form, value, where))


def _of_plain(form: Any, value: Any, where: str) -> Any:
    if form is Any:
        return value
    if dataclasses.is_dataclass(form):
        return _dataclass(form, value, where)
    origin, arguments = typing.get_origin(form), typing.get_args(form)
    if origin in (Union, types.UnionType):
        for argument in arguments:
            try:
                return _of_plain(argument, value, where)
            except FormError:
                continue
    elif origin is Literal:
        if any(value == argument and type(value) is type(argument) for argument in arguments):
            return value
    elif origin is tuple and isinstance(value, list):
        return tuple(_of_plain(arguments[0], item, f"{where}[{number}]") for number, item in enumerate(value))
    elif origin in (dict, Mapping) and isinstance(value, dict):
        return {str(key): _of_plain(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    elif form is type(None):
        if value is None:
            return None
    elif form is float and type(value) in (int, float):
        return float(value)
    elif form in (str, int, bool) and type(value) is form:
        return value
    raise FormError(f"{where}: {form} was expected, and not {value!r:.80}")


def _dataclass(form: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise FormError(f"{where}: an object was expected, and not {value!r:.80}")
    hints = typing.get_type_hints(form)
    fields = {field.name: field for field in dataclasses.fields(form)}
    given = {name: _of_plain(hints[name], value[name], f"{where}.{name}") for name in fields if name in value}
    for name, field in fields.items():
        no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if no_default and name not in given:
            raise FormError(f"{where}: {name} is missing")
    return form(**given)


def to_plain(value: Any, clean: Callable[[str], str] = str) -> Any:
    """An object of such a form as the json module takes it.

    :param clean: makes a text fit to be sent.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name), clean) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {clean(str(key)): to_plain(item, clean) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item, clean) for item in value]
    return clean(value) if isinstance(value, str) else value
