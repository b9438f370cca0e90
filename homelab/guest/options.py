"""Guests' options as Proxmox VE's API takes them, by options.toml: their keys, types and formats. Whether a value is
right, the host's own code says (remote_scripts/layers/judge_guests.py).
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_suffix(".toml")
#: What the API takes for a boolean -> what it is.
BOOLEANS = {"1": 1, "on": 1, "yes": 1, "true": 1, "0": 0, "off": 0, "no": 0, "false": 0}


@dataclass(frozen=True)
class Parameter:
    """One parameter. `kind`: boolean, integer, number, text, list, or one of the `words`; `low` and `high` bound a
    number's value or a text's length; `requires`: only together with that one."""

    name: str
    kind: str
    optional: bool = True
    words: Sequence[str] = ()
    low: float | None = None
    high: float | None = None
    requires: str | None = None
    format: str | None = None
    pattern: str | None = None


Parameters = dict[str, Parameter]


@dataclass(frozen=True)
class PropertyFormat:
    """A property string's keys; `default` is the key of a word without `=`, `aliases` see the head of the file."""

    keys: Parameters
    default: str | None = None
    aliases: str | None = None


@dataclass(frozen=True)
class Tables:
    """Options and formats by name."""

    options: dict[str, Parameters]
    formats: dict[str, PropertyFormat]


def parameters(block: Mapping[str, Any]) -> Parameters:
    """The parameters of a block such as `"net*32" = { kind = "text", format = "qemu-net" }`, by name."""
    found = {}
    for key, about in block.items():
        stem, star, count = key.partition("*")
        for name in (f"{stem}{number}" for number in range(int(count))) if star else (stem,):
            found[name] = Parameter(name, **about)
    return found


@functools.cache
def tables() -> Tables:
    """The file, read once."""
    read = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    formats = {
        name: PropertyFormat(**{**about, "keys": parameters(about["keys"])}) for name, about in read["formats"].items()
    }
    return Tables({name: parameters(block) for name, block in read["options"].items()}, formats)


@functools.cache
def of_new(kind: str) -> Parameters:
    """What a guest that is made takes, by name.

    :param kind: qemu or lxc.
    """
    return {**tables().options[kind], **tables().options[f"new-{kind}"]}


def as_text(kind: str, key: str, value: str | float) -> str:
    """A value of a YAML file as the API takes it.

    :param kind: qemu or lxc.
    """
    if isinstance(value, bool):
        return str(int(value))
    parameter = of_new(kind).get(key)
    return str(BOOLEANS.get(str(value).lower(), value)) if parameter and parameter.kind == "boolean" else str(value)
