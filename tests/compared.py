"""docs/compared.yaml: the program's features. The data name tests: what a row says of this program, they show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parents[1]
DATA = PROJECT / "docs" / "compared.yaml"

ANSWERS = ("yes", "partly", "no")


@dataclass(frozen=True)
class Row:
    """A feature, whether it is there, what else there is to say, and the tests that show it."""

    feature: str
    homelab: str
    note: str
    tests: tuple[str, ...]


def load(text: str | None = None) -> dict[str, list[Row]]:
    """The rows of docs/compared.yaml by group, in their order.

    :raises ValueError: a row has a key that isn't read, or another word than yes, partly or no.
    """
    # Every value is text: `no` is a word here.
    loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # a tenth of the time
    data: dict[str, Any] = yaml.load(text or DATA.read_text(encoding="utf-8"), Loader=loader)
    return {group["group"]: [_row(row) for row in group["features"]] for group in data["groups"]}


def _row(row: Mapping[str, Any]) -> Row:
    if unread := row.keys() - {"feature", "homelab", "note", "tests"}:
        raise ValueError(f"{row['feature']}: nothing reads {', '.join(sorted(unread))}")
    if (homelab := row.get("homelab", "yes")) not in ANSWERS:
        raise ValueError(f"{row['feature']}: homelab is {homelab}")
    return Row(row["feature"], homelab, row.get("note", ""), tuple(row.get("tests", ())))
