"""Makes settings from the stack's configuration. The error names every mistake in it: the key, the value, and the key
that was probably meant."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from homelab.errors import HomelabError
from homelab.fields.paths import text_of
from homelab.host.settings import Host
from homelab.settings.whole import Settings


def parse(values: Mapping[str, Any], file: Path | None = None) -> Settings:
    """Settings, or a part of them. The models' rules alone apply, so that what can't be carried out can still be
    removed.

    :param values: key (without `homelab:`) -> value, or its text, as Pulumi has it: structured values as JSON.
    :param file: the stack's file that they are from, for messages; None: it isn't known.
    :raises HomelabError: one error that names every mistake.
    """
    try:
        return Settings.model_validate({key: decoded(value) for key, value in values.items()})
    except ValidationError as error:
        raise _explain(error, file) from None


def load_host(hosts: Any, name: str) -> Host:
    """One host from `homelab:hosts`, for processes that don't run the program, such as the provider.

    :param hosts: the value of `homelab:hosts`, or its text; None: the key isn't set.
    :param name: the host's name in the settings.
    :raises HomelabError: the host is missing, or its settings are mistaken.
    """
    values = decoded(hosts or {})
    if isinstance(values, dict):
        if name not in values:
            raise HomelabError(
                wanted=f"homelab:hosts.{name} in the stack's configuration, or in a program's HomelabProvider",
                found=f"hosts: {', '.join(sorted(values)) or 'none'}",
                why="it says how to reach the host",
                next="put it back; to give the host up, first take its cards, VMs and containers out, and run "
                "`pulumi up`; then take the host out",
            )
        # A mistake in another host's settings must not stop the removal of this one.
        values = {name: values[name]}
    return parse({"hosts": values}).hosts[name]


def decoded(value: Any) -> Any:
    """A value of the configuration, of a text with JSON in it that."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


# Keys below which there are secrets, or may be by mistake; and pydantic's errors of a text in a whole section's place.
_SECRET_PLACES = {"ssh", "proxy", "password", "cipassword", "mirror", "create"}
_SECTION_ERRORS = {"dict_type", "list_type", "model_type"}


# What pydantic's errors of a type (`int_parsing`) want.
_WANTED = {"int": "a whole number", "bool": "true or false", "string": "a text", "list": "a list, such as [rtx5090]"}
_WANTED |= dict.fromkeys(("dict", "model"), "a group of keys")


def _explain(error: ValidationError, file: Path | None) -> HomelabError:
    """The error for the user, with a line for each of pydantic's errors. It quotes no value that may be secret."""
    lines, root = [], yaml.compose(text_of(file), yaml.SafeLoader) if file else None
    for problem in error.errors(include_url=False):
        # A key may be any JSON string, with a terminal's control characters too.
        place = ".".join(_visible(str(part)) for part in problem["loc"] if part != "[key]")
        text = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
        shown = _visible(repr(problem["input"])) if _may_be_shown(problem) else ""
        kind, _, how = problem["type"].partition("_")
        if problem["type"] == "extra_forbidden":
            text = f"unknown key{_suggestion(problem['loc'])}"
        elif problem["type"] == "missing":
            text = "missing"
        elif kind in _WANTED and how in ("parsing", "type", "from_float"):
            text = f"{shown or 'what stands there'} isn't {_WANTED[kind]}"
        elif shown:
            text = f"{text}; found {shown}"
        at = f"{file.name}:{_line(root, problem['loc'] or text.partition(':')[0].split('.'))}: " if file else ""
        lines.append(f"{at}homelab:{place}{': ' if place else ''}{text}")
    return HomelabError(
        wanted="valid settings",
        found=("\n        ").join(lines),
        why="checked before anything was changed",
        next=f"correct {file or 'the settings'}; docs/settings.md describes the keys",
    )


def _line(node: Any, place: Sequence[int | str]) -> int:
    """The line of a place in a whole file, or of what it would be in."""
    line = 1
    for names in (("config",), (f"homelab:{place[0]}", place[0]), *((part,) for part in place[1:])):
        nodes = node.value if isinstance(node, yaml.CollectionNode) else []
        pairs = nodes if isinstance(node, yaml.MappingNode) else [(one, one) for one in nodes]
        found = [pair for number, pair in enumerate(pairs) if {number, pair[0].value} & {*names}]
        if not found:
            break
        line, node = found[0][0].start_mark.line + 1, found[0][1]
    return line


def _may_be_shown(problem: ErrorDetails) -> bool:
    value = problem["input"]
    # An address may have a user's password before its @.
    is_plain = isinstance(value, int | float) or (isinstance(value, str) and "@" not in value)
    return is_plain and problem["type"] not in _SECTION_ERRORS and not _SECRET_PLACES & set(problem["loc"])


# Characters of a mistaken value or key that a message shows.
_LONGEST_SHOWN = 120


def _visible(text: str) -> str:
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}…"


def _suggestion(location: tuple[int | str, ...]) -> str:
    """`, did you mean …` for an unknown key, from the keys that its model has."""
    model: Any = Settings
    for part in location[:-1]:
        model = _without_none(model)
        if isinstance(model, type) and issubclass(model, BaseModel):
            model = next(field.annotation for field in model.model_fields.values() if field.alias == part)
        else:  # a mapping of names to models, or a list of them
            model = get_args(model)[-1]
    keys = [field.alias or "" for field in _without_none(model).model_fields.values()]
    matches = difflib.get_close_matches(str(location[-1]), keys, n=1)
    return f", did you mean `{matches[0]}`?" if matches else f"; known are {', '.join(keys)}"


def _without_none(annotation: Any) -> Any:
    """`X` for `X | None`."""
    arguments = get_args(annotation)
    return arguments[0] if type(None) in arguments else annotation
