"""docs/hardware.md, made from owners' reports: ``python -m tests.hardware`` writes its table anew.

A report is a file ``NAME.json`` beside this one, as `homelab report` writes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from docs.tables.markdown import table, with_tables
from homelab.hardware import HardwareReport, HostReport

FOLDER = Path(__file__).resolve().parent
DOCUMENT = FOLDER.parents[1] / "docs" / "hardware.md"
_HEAD = ("machine", "card", "for", "Proxmox VE, kernel", "criteria shown", "not met, or not known", "undo", "homelab")


def load() -> list[HardwareReport]:
    """The owners' reports, by the names of their files."""
    return [HardwareReport.model_validate_json(path.read_bytes()) for path in sorted(FOLDER.glob("*.json"))]


def written(page: str, reports: Iterable[HardwareReport]) -> str:
    """The page with its table made from these reports."""
    rows = [row for report in reports for host in report.hosts for row in _rows(report, host)]
    return with_tables(page, {"reports": table(_HEAD, rows) if rows else "None yet.\n"})


def _rows(report: HardwareReport, host: HostReport) -> Iterable[tuple[str, ...]]:
    for card in host.cards:
        criteria = [*host.criteria, *card.criteria]
        others = "; ".join(f"{one.criterion}: {one.evidence}" for one in criteria if not one.met)
        yield (
            host.machine or "not known",
            f"{card.model} [{card.id}]".strip(),
            card.use,
            f"{host.proxmox}, {host.kernel}",
            f"{sum(one.met is True for one in criteria)} of {len(criteria)}",
            others,
            report.undo,
            f"{report.homelab}, {report.date}",
        )
