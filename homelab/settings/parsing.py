"""The stack's configuration as settings; every mistake in it is named, where it is, what was found, and what was
probably meant."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from homelab.errors import HomelabError
from homelab.settings.host import Host
from homelab.settings.removed import removed
from homelab.settings.whole import Settings


def parse(values: Mapping[str, str]) -> Settings:
    """Settings, or a part of them, that can be read; what can't be carried out must not keep anybody from taking it
    away.

    :param values: key (without `homelab:`) -> text, structured values as JSON.
    :raises HomelabError: one error that names every mistake.
    """
    try:
        settings = Settings.model_validate({key: _decode(text) for key, text in values.items()})
    except ValidationError as error:
        raise _explain(error) from None
    return settings.with_volumes()


def load_host(hosts: str | None, name: str, clusters: str | None = None) -> Host:
    """One host from the text of `homelab:hosts`; for the processes that don't run the program.

    :param clusters: the text of `homelab:clusters`, of which it may take something.
    :raises HomelabError: it is missing or mistaken.
    """
    whole = _decode(hosts or "{}")
    if isinstance(whole, dict) and name in whole:
        # A mistake in another host's settings must not keep anybody from giving this one up.
        whole = {name: whole[name]}
    known = parse({"hosts": json.dumps(whole), **({"clusters": clusters} if clusters else {})}).hosts
    host = known.get(name)
    if host is None:
        raise HomelabError(
            wanted=f"homelab:hosts.{name} in the stack's configuration",
            found=f"hosts: {sorted(known)}",
            why="it says how to reach the host",
            next="put it back; to give the host up, first take its cards, VMs and containers out, and run "
            "`pulumi up`; then take the host out",
        )
    return host


def _decode(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


# What a host may take from its cluster.
_FROM_CLUSTERS = {"address", "ssh", "api", "guestsAtReboot"}
# Below these keys there are secrets, or may be by mistake.
_SECRET_PLACES = {"ssh", "api", "cloudInit", "proxy", "password", "mirror", "options"}


def _explain(error: ValidationError) -> HomelabError:
    """Pydantic's list as the text a person gets. Values never appear where they may be secret."""
    lines = []
    problems = error.errors(include_url=False)
    if any(problem["loc"][:1] == ("clusters",) for problem in problems):
        # A mistake in a cluster is told where it was written, and not once more for each host that takes it from there.
        problems = [
            one for one in problems if not (one["loc"][:1] == ("hosts",) and {*one["loc"][2:3]} & _FROM_CLUSTERS)
        ]
    for problem in problems:
        # A key may be anything that JSON can say, control characters of a terminal too.
        place = ".".join(_visible(str(part)) for part in problem["loc"] if part != "[key]")
        text = problem["msg"].removeprefix("Value error, ")
        if instead := removed(problem["loc"], problem["input"]):
            text = instead
        elif problem["type"] == "extra_forbidden":
            text = f"unknown key{_meant(problem['loc'])}"
        elif problem["type"] == "missing":
            text = "missing"
        elif isinstance(problem["input"], str | int | float | bool) and not _SECRET_PLACES & set(problem["loc"]):
            text = f"{text}; found {_visible(repr(problem['input']))}"
        lines.append(f"homelab:{place}{': ' if place else ''}{text}")
    return HomelabError(
        wanted="a configuration that can be carried out",
        found=("\n        ").join(lines),
        why="nothing was done: a mistake here would surface half-way through a change to the host",
        next="correct Pulumi.<stack>.yaml; docs/settings.md describes the keys",
    )


# How much of a mistaken value or key a message shows.
_SHOWN = 120


def _visible(text: str) -> str:
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def _meant(location: tuple[int | str, ...]) -> str:
    """`, did you mean …` for an unknown key, from the keys that its model has."""
    model: Any = Settings
    for part in location[:-1]:
        model = _inside(model)
        if isinstance(model, type) and issubclass(model, BaseModel):
            model = next(field.annotation for field in model.model_fields.values() if field.alias == part)
        else:  # a mapping of names to models, or a list of them
            model = get_args(model)[-1]
    known = [field.alias or "" for field in _inside(model).model_fields.values()]
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f", did you mean `{close[0]}`?" if close else f"; known are {', '.join(known)}"


def _inside(annotation: Any) -> Any:
    """`X` for `X | None`."""
    return (
        next((one for one in get_args(annotation) if one is not type(None)), None)
        if _optional(annotation)
        else annotation
    )


def _optional(annotation: Any) -> bool:
    return type(None) in get_args(annotation)
