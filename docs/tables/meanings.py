"""What each key means: the text below it in its model's source.

pydantic can read these texts itself (`use_attribute_docstrings`), but then each start of the program parses the source
of each model, for what only documents need: an eighth of its processor time.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Names of a model's fields, its own and inherited ones, with their meanings.

    :raises ValueError: a field has none.
    """
    found: dict[str, str] = {}
    for part in reversed(model.__mro__):
        if issubclass(part, BaseModel) and part is not BaseModel:
            found |= texts(part)
    if missing := [name for name in model.model_fields if name not in found]:
        raise ValueError(f"{model.__name__}: without a text below it: {', '.join(missing)}")
    return {name: found[name] for name in model.model_fields}


def derived(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """All models that derive from this one."""
    for part in model.__subclasses__():
        yield part
        yield from derived(part)


def texts(model: type[Any]) -> dict[str, str]:
    (definition,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in zip(definition.body, definition.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }
