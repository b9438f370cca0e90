"""A whole stack: every host, VM and container of its settings, judged together; what is wrong comes first. Pure."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from homelab.doctor.report import VERSION, WIDTH, Report, Table, in_order, verdict
from homelab.errors import HomelabError
from homelab.findings import Finding, cured
from homelab.text import clean

COLUMNS = ["", "where in the settings", "what it is", "verdict"]


@dataclass(frozen=True)
class Part:
    """`place`: in the settings, such as `vms.sandbox`; `report`: or what is judged of a guest that is not there
    (`told`), or the `error` for which there is neither.
    """

    place: str
    report: Report | None = None
    error: HomelabError | None = None
    told: Sequence[Finding] = ()

    @property
    def well(self) -> bool:
        return self.report is not None and self.report.well

    @property
    def verdict(self) -> str:
        """In a few words."""
        if self.error is not None:
            return "could not be read"
        number = len(self.findings)
        return "ok" if not number else f"{number} thing{'s' * (number > 1)} wrong"

    @property
    def findings(self) -> list[Finding]:
        """What is wrong with it, with its name; that it can't be read, too."""
        findings = self.report.findings if self.report else self.told or Finding.of(*filter(None, [self.error]))
        return [dataclasses.replace(finding, wanted=f"{self.place}: {finding.wanted}") for finding in findings]


@dataclass(frozen=True)
class Whole:
    """All parts of a stack. `notes`: what else there is to know, such as NVIDIA's releases, a sentence each."""

    stack: str
    parts: Sequence[Part]
    notes: Sequence[str] = ()

    @property
    def readable(self) -> bool:
        return all(part.error is None for part in self.parts)

    @property
    def well(self) -> bool:
        return all(part.well for part in self.parts)

    @property
    def findings(self) -> list[Finding]:
        """Of all parts, each once: a host's trouble is also its guests'."""
        return cured(finding for part in self.parts for finding in part.findings)

    def text(self, width: int = WIDTH) -> str:
        """For people: what is wrong, what to do; then a table of all.

        :param width: of the terminal, in columns.
        """
        rows = [
            [
                "ok" if part.well else "!!",
                part.place,
                part.report.subject.partition(":")[0] if part.report else "",
                part.verdict,
            ]
            for part in self.parts
        ]
        wrong = sum(not part.well for part in self.parts)
        problems = "has a problem" if wrong == 1 else "have problems"
        head = f"stack {self.stack}: {f'{wrong} of {len(self.parts)} {problems}' if wrong else 'all is well'}"
        parts = [head, *verdict(self.findings, in_order(self.findings), width)]
        parts.append(Table("all of the settings", COLUMNS, rows).text(width))
        if wrong:
            parts.append("one of them with its tables: homelab doctor host, or vm ID, or container ID")
        parts += [textwrap.fill(note, width) for note in self.notes]
        return clean("\n\n".join(parts))

    def values(self) -> dict[str, Any]:
        """For programs: the reports of all parts, each as by itself."""
        reports = [
            {"place": part.place, **part.report.values()}
            if part.report is not None
            else {"place": part.place, "well": False, "errors": [finding.parts() for finding in part.findings]}
            for part in self.parts
        ]
        head = {"version": VERSION, "kind": "stack", "subject": self.stack, "well": self.well}
        return {**head, "reports": reports, "next": in_order(self.findings)}
