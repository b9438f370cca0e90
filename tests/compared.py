"""docs/compared.md, made from docs/compared.yaml: ``python -m tests.compared`` writes its tables anew.

It lies here because the data names tests: what a row says of this program, they show.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from homelab.markdown import table, with_tables

PROJECT = Path(__file__).resolve().parents[1]
DATA = PROJECT / "docs" / "compared.yaml"
DOCUMENT = DATA.with_suffix(".md")

SIGNS = {"yes": "✓", "partly": "(✓)", "no": "–", "?": "?"}
_CELL = re.compile(r"(?P<has>yes|partly|no|\?)(?P<sources>(?: [a-z0-9-]+)*)(?: \((?P<note>.+)\))?")
_FILE = re.compile(r"(?P<path>.+)@(?P<commit>[0-9a-f]{7,40})")
_ISSUE = re.compile(r"issue (?P<number>\d+)")


@dataclass(frozen=True)
class Cell:
    """What one of the others does, where that was read, and what is meant."""

    has: str
    sources: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class Peer:
    name: str
    repository: str
    what: str
    version: str


@dataclass(frozen=True)
class Row:
    feature: str
    homelab: str
    note: str
    tests: tuple[str, ...]
    peers: Mapping[str, Cell]


@dataclass(frozen=True)
class Comparison:
    """All of docs/compared.yaml; ``sources``: a name -> a file and its commit, or an issue."""

    read: str
    peers: Mapping[str, Peer]
    sources: Mapping[str, str]
    groups: Mapping[str, Sequence[Row]]


def load(text: str | None = None) -> Comparison:
    """The data.

    :raises ValueError: a row lacks a column or has one too many, or a cell is of another form.
    """
    # Every value is text: `no` is a word here.
    loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # a tenth of the time
    data: dict[str, Any] = yaml.load(text or DATA.read_text(encoding="utf-8"), Loader=loader)
    peers = {key: Peer(**about) for key, about in data["peers"].items()}
    return Comparison(
        data["read"],
        peers,
        data["sources"],
        {group["group"]: [_row(row, peers) for row in group["features"]] for group in data["groups"]},
    )


def _row(row: Mapping[str, Any], peers: Mapping[str, Peer]) -> Row:
    columns = {"feature", "homelab", *peers}
    if lacking := columns - row.keys():
        raise ValueError(f"{row.get('feature')}: {', '.join(sorted(lacking))} is missing")
    if more := row.keys() - columns - {"note", "tests"}:
        raise ValueError(f"{row['feature']}: nobody reads {', '.join(sorted(more))}")
    if row["homelab"] not in SIGNS:
        raise ValueError(f"{row['feature']}: homelab is {row['homelab']}")
    cells = {key: _cell(row[key], f"{row['feature']}: {key}") for key in peers}
    return Row(row["feature"], row["homelab"], row.get("note", ""), tuple(row.get("tests", ())), cells)


def _cell(text: str, where: str) -> Cell:
    if (match := _CELL.fullmatch(text)) is None:
        raise ValueError(f"{where} is {text}")
    return Cell(match["has"], tuple(match["sources"].split()), match["note"] or "")


def written(page: str, data: Comparison | None = None) -> str:
    """The page with its tables as the data has them."""
    data = data or load()
    tables = {"peers": _peers(data)}
    for name, rows in data.groups.items():
        slug = re.sub(r"[^a-z]+", "-", name.lower()).strip("-")
        tables[slug] = _features(data, rows)
        tables[f"{slug}-evidence"] = _evidence(data, rows)
    return with_tables(page, tables)


def _peers(data: Comparison) -> str:
    rows = [
        (f"[{peer.name}](https://github.com/{peer.repository})", peer.what, peer.version)
        for peer in data.peers.values()
    ]
    return table(("", "what it is", "read"), rows)


def _features(data: Comparison, rows: Sequence[Row]) -> str:
    head = ("", "homelab", *(peer.name for peer in data.peers.values()))
    return table(
        head, [(row.feature, SIGNS[row.homelab], *(SIGNS[row.peers[key].has] for key in data.peers)) for row in rows]
    )


def _evidence(data: Comparison, rows: Sequence[Row]) -> str:
    return table(("", "homelab", "others"), [(row.feature, _ours(row), _theirs(data, row)) for row in rows])


def _ours(row: Row) -> str:
    return " ".join(
        [*([row.note] if row.note else []), "<br>".join(f"`{test.removeprefix('tests/')}`" for test in row.tests)]
    ).strip()


def _theirs(data: Comparison, row: Row) -> str:
    told = []
    for key, cell in row.peers.items():
        if cell.sources or cell.note:
            links = ", ".join(_link(data.peers[key].repository, data.sources[source]) for source in cell.sources)
            note = f" ({cell.note})" if cell.note else ""
            told.append(f"{data.peers[key].name} {SIGNS[cell.has]} {links}{note}")
    return "<br>".join(told)


def _link(repository: str, source: str) -> str:
    """A file as it was read, or an issue.

    :raises ValueError: it is neither.
    """
    if file := _FILE.fullmatch(source):
        name = file["path"].rpartition("/")[2]
        return f"[{name}](https://github.com/{repository}/blob/{file['commit']}/{quote(file['path'])})"
    if issue := _ISSUE.fullmatch(source):
        return f"[#{issue['number']}](https://github.com/{repository}/issues/{issue['number']})"
    raise ValueError(f"{source} is neither FILE@COMMIT nor an issue")


def main() -> None:
    """Write the tables of docs/compared.md."""
    DOCUMENT.write_text(written(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
