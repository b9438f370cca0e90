"""Answers as Proxmox VE's commands print them: JSON, or a table for people.

Tables look as those of `pvesh` in a terminal with UTF-8, but are as wide as their content.
"""

from __future__ import annotations

import json
from typing import Any

FORMATS = ("text", "json", "json-pretty")


def formatted(answer: Any, form: str, columns: tuple[str, ...] = ()) -> str:
    """An answer as text; empty for none.

    Args:
        answer: what an operation gives back.
        form: one of FORMATS, or `quiet` for nothing.
        columns: those that a list always has, in their order; rows are sorted by the first. Others follow by name.
    """
    if answer is None or form == "quiet":
        return ""
    if form != "text":
        pretty = form == "json-pretty"
        signs = (",", " : ") if pretty else (",", ":")
        return (
            json.dumps(answer, indent=3 if pretty else None, separators=signs, sort_keys=True, ensure_ascii=False)
            + "\n"
        )
    if isinstance(answer, dict):
        return _table(["key", "value"], [{"key": key, "value": answer[key]} for key in sorted(answer)])
    if isinstance(answer, list):
        others = {name for entry in answer for name in entry} - set(columns)
        rows = sorted(answer, key=lambda entry: [str(entry.get(name, "")) for name in columns[:1]])
        return _table([*columns, *sorted(others)], rows)
    return f"{answer}\n"


def _table(names: list[str], rows: list[dict[str, Any]]) -> str:
    """A table with its frame; nothing without rows."""
    if not rows:
        return ""
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    to_the_right = [
        all(isinstance(row[name], int) for row in rows if name in row) and any(name in row for row in rows)
        for name in names
    ]

    def line(left: str, fill: str, between: str, right: str) -> str:
        return left + between.join(fill * (width + 2) for width in widths) + right + "\n"

    def row_line(texts: list[str], aligned: list[bool]) -> str:
        padded = [t.rjust(w) if a else t.ljust(w) for t, w, a in zip(texts, widths, aligned, strict=True)]
        return f"│ {' │ '.join(padded)} │\n"

    head = line("┌", "─", "┬", "┐") + row_line(names, [False] * len(names)) + line("╞", "═", "╪", "╡")
    body = line("├", "─", "┼", "┤").join(row_line(texts, to_the_right) for texts in cells)
    return head + body + line("└", "─", "┴", "┘")


def _cell(value: Any) -> str:
    if isinstance(value, dict | list):
        return json.dumps(value, separators=(",", ":"), sort_keys=True)
    return "" if value is None else str(value)
