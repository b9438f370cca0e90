"""Guests' options as Proxmox VE's API takes them, by options.txt: their keys, types and formats. Whether a value is
right, the host's own code says (remote_scripts/layers/judge_guests.py).
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_suffix(".txt")
_PARAMETER = re.compile(
    r"(?P<name>[\w-]+)(?:\*(?P<count>\d+))?(?P<optional>\?)? "
    r"(?P<kind>boolean|integer|number|text|list|one of (?P<words>.+?))"
    r"(?: (?P<low>[\d.]*?)\.\.(?P<high>[\d.]*))?"
    r"(?: with (?P<requires>\S+))?(?: as (?P<format>\S+))?(?: like (?P<pattern>.+))?"
)
#: What the API takes for a boolean -> what it is.
BOOLEANS = {"1": 1, "on": 1, "yes": 1, "true": 1, "0": 0, "off": 0, "no": 0, "false": 0}


@dataclass(frozen=True)
class Parameter:
    """One parameter. `low` and `high` bound a number's value or a text's length."""

    name: str
    kind: str
    optional: bool = False
    words: tuple[str, ...] = ()
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


class Tables:
    """Formats and options by name. `text`: of a file such as options.txt."""

    def __init__(self, text: str) -> None:
        self.options: dict[str, Parameters] = {}
        self.formats: dict[str, PropertyFormat] = {}
        # Blocks, each a line with what follows it indented.
        into: Parameters = {}
        for line in text.splitlines():
            if line.startswith("  takes: "):
                into.update(self.options[line.removeprefix("  takes: ")])
            elif line.startswith("  "):
                into.update(parameters(line.strip()))
            elif line and not line.startswith("#"):
                into = self.block(*line.split(" ", 1))

    def block(self, verb: str, rest: str) -> Parameters:
        """Begins a block: where its parameters go."""
        into: Parameters = {}
        if verb == "options":
            self.options[rest] = into
        else:
            name, *words = rest.split()
            keys = dict(zip(words[::2], words[1::2], strict=True))
            self.formats[name] = PropertyFormat(into, keys.get("default"), keys.get("aliases"))
        return into


def parameters(line: str) -> Parameters:
    """The parameters of a line such as `net*32? text as qemu-net`, by name.

    :raises ValueError: it has another form.
    """
    match = _PARAMETER.fullmatch(line)
    if match is None:
        raise ValueError(f"wanted a name and its kind as the file's head describes, found {line!r}")
    about: dict[str, Any] = match.groupdict()
    count, words = about.pop("count"), tuple((about.pop("words") or "").split())
    about |= {"optional": bool(about["optional"]), "words": words, "kind": "one of" if words else about["kind"]}
    about |= {bound: float(about[bound]) if about[bound] else None for bound in ("low", "high")}
    names = [f"{match['name']}{number}" for number in range(int(count))] if count else [match["name"]]
    return {name: Parameter(**about | {"name": name}) for name in names}


def text() -> str:
    """The content of options.txt."""
    return _FILE.read_text(encoding="utf-8")


@functools.cache
def tables() -> Tables:
    """The file, read once."""
    return Tables(text())


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
