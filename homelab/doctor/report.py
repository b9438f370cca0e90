"""A diagnosis as it is shown: head, what is wrong, what to do, tables; as aligned text or as JSON. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from homelab.errors import HomelabError
from homelab.findings import Finding
from homelab.text import clean

# Raised when a key of the JSON is taken away or changes its meaning; keys are only added within a version.
VERSION = 1
WIDTH = 132
# What begins a line that is copied as a whole: a command, lines of a container's configuration.
_COPIED = ("`", "lxc.")


@dataclass(frozen=True)
class Table:
    """Rows under columns; all texts."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def text(self, width: int = WIDTH) -> str:
        """Aligned by spaces; where that is wider than `width` columns, a sentence for each row."""
        lines = [self.columns, *([cell or "-" for cell in row] for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.columns))]
        if len(widths) > 1 and sum(widths) + 2 * len(widths) > width:
            labels = ["", *(f"{column} " for column in self.columns[1:])]
            cells = [[label + cell for label, cell in zip(labels, row, strict=True) if cell] for row in self.rows]
            shown = [_wrapped("; ".join(row), "  ", "      ", width) for row in cells]
        else:
            aligned = ["  ".join(cell.ljust(size) for cell, size in zip(line, widths, strict=True)) for line in lines]
            shown = [f"  {line}".rstrip() for line in aligned]
        return "\n".join([self.title, *shown])


@dataclass(frozen=True)
class Report:
    """`kind`: container, vm or host; `head`: lines that say what it is; `data`: the same as the tables, for
    programs.
    """

    kind: str
    subject: str
    head: list[str]
    tables: list[Table]
    findings: list[Finding]
    notes: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def well(self) -> bool:
        return not self.findings

    @property
    def next(self) -> list[str]:
        """What to do, in order, each thing once."""
        return self.steps or in_order(self.findings)

    def text(self, width: int = WIDTH) -> str:
        """For people: what the host says in it is made safe to show.

        :param width: of the terminal, in columns.
        """
        parts = ["\n".join([self.subject, *(_wrapped(line, "  ", "    ", width) for line in self.head)])]
        parts += verdict(self.findings, self.next, width) or ["nothing is wrong"]
        parts += [table.text(width) for table in self.tables if table.rows]
        if self.notes:
            parts.append("\n".join(["to know", *(_wrapped(note, "  - ", "    ", width) for note in self.notes)]))
        return clean("\n\n".join(parts))

    def values(self) -> dict[str, Any]:
        """For programs, as JSON; docs/outputs.md has the keys."""
        findings = [
            finding.parts() | {"stage": finding.stage.name.lower(), "turn": finding.turn.name.lower()}
            for finding in self.findings
        ]
        head = {"version": VERSION, "kind": self.kind, "subject": self.subject, "well": self.well}
        return {**head, **self.data, "findings": findings, "notes": self.notes, "next": self.next}


def unreadable(kind: str, error: HomelabError) -> dict[str, Any]:
    """In place of a report's values: the errors for which there is none."""
    errors = [finding.parts() for finding in Finding.of(error)]
    return {"version": VERSION, "kind": kind, "errors": errors}


def in_order(findings: Sequence[Finding]) -> list[str]:
    """Their next steps by stage, each once."""
    return list(dict.fromkeys(finding.next for finding in sorted(findings, key=lambda finding: finding.stage)))


def verdict(findings: Sequence[Finding], steps: Sequence[str], width: int) -> list[str]:
    """What is wrong, each with its four parts, and what to do; both numbered. Empty: nothing is wrong."""
    if not findings:
        return []
    wrong = [_shown(number, finding, width) for number, finding in enumerate(findings, start=1)]
    to_do = [_wrapped(step, f"{number:>3}. ", "     ", width) for number, step in enumerate(steps, start=1)]
    return ["what is wrong\n" + "\n\n".join(wrong), "\n".join(["what to do, in this order", *to_do])]


def _wrapped(text: str, first: str, others: str, width: int) -> str:
    """Long lines broken at spaces; a text's own lines stay, and so do commands and lines to be copied."""
    lines = text.splitlines() or [""]
    shown = []
    for number, line in enumerate(lines):
        head = first if number == 0 else others
        if line.startswith(_COPIED):
            shown.append(f"{head}{line}")
            continue
        shown += textwrap.wrap(
            line, width, initial_indent=head, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
        ) or [head.rstrip()]
    return "\n".join(shown)


def _shown(number: int, finding: Finding, width: int) -> str:
    return "\n".join(
        _wrapped(text, f"{f'{number:>2}. ' if name == 'wanted' else '    '}{name}:".ljust(12), " " * 12, width)
        for name, text in finding.parts().items()
    )
