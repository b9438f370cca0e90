"""What is noted of the values that this program sets on cards (layers/card_values.py)."""

from __future__ import annotations

from dataclasses import dataclass

from remote_scripts.tools.files import HOME

#: A file ADDRESS=ATTRIBUTE for each value, in which a slash is a colon: what was there before, and ours below.
FOLDER = f"{HOME}/card-values"


@dataclass(frozen=True)
class Record:
    """A value's. `attribute`: such as power/control; `before`, `ours`: the values."""

    address: str
    attribute: str
    before: str
    ours: str


def name_of(address: str, attribute: str) -> str:
    """The name of a value's file."""
    return f"{address}={attribute.replace('/', ':')}"


def parse(name: str, text: str) -> Record | None:
    """The record of a file; None: it is none, or not whole.

    :param name: its name.
    :param text: what it has.
    """
    address, is_record, attribute = name.partition("=")
    before, *own = text.rstrip("\n").split("\n")
    if name.startswith(".") or not is_record or not own:
        return None
    return Record(address, attribute.replace(":", "/"), before, own[0])
