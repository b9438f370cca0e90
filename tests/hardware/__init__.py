"""The table of owners' reports in docs/tiers.md: ``python -m tests.hardware`` writes it anew.

A report is a file ``NAME.json`` beside this one, as `homelab report` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from docs.tables.markdown import table, with_tables

FOLDER = Path(__file__).resolve().parent
DOCUMENT = FOLDER.parents[1] / "docs" / "tiers.md"
_HEAD = ("machine", "card", "for", "Proxmox VE, kernel", "drivers", "well", "undo", "homelab")


def load() -> list[dict[str, Any]]:
    """The owners' reports, by the names of their files."""
    return [json.loads(path.read_bytes()) for path in sorted(FOLDER.glob("*.json"))]


def written(page: str, reports: Iterable[dict[str, Any]]) -> str:
    """The page with its table made from these reports."""
    rows = [row for report in reports for row in _rows(report)]
    return with_tables(page, {"reports": table(_HEAD, rows) if rows else "None yet.\n"})


def _rows(report: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    well = f"{sum(part['well'] for part in report['parts'])} of {len(report['parts'])}"
    for host in (part for part in report["parts"] if part["kind"] == "host"):
        for card in host["cards"]:
            first = card["functions"][0]["id"] if card["functions"] else ""
            yield (
                host["machine"] or "not known",
                f"{card['model']} [{first}]".strip(),
                card["use"],
                f"{host['pve']}, {host['kernel']}",
                ", ".join(dict.fromkeys(function["driver"] or "none" for function in card["functions"])),
                well,
                report["undo"],
                f"{report['homelab']}, {report['date']}",
            )
