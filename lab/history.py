"""What happened in a lab, as a person reads it: its logs in one, in the order of time."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from lab.client import Lab
from lab.state import LOG_NAMES


def _time(entry: dict[str, Any]) -> str:
    """Return an entry's time as ISO 8601; programs write seconds since 1970."""
    at = entry.get("at", entry.get("started", ""))
    return (
        datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds") if isinstance(at, int | float) else str(at)
    )


def history(lab: Lab) -> list[dict[str, Any]]:
    """Return all that a lab's logs hold, oldest first: each entry with the name of its log."""
    entries = [{"log": name, **entry} for name in LOG_NAMES for entry in lab.log(name)]
    return sorted(entries, key=_time)


def line(entry: dict[str, Any]) -> str:
    """Return an entry as one line: its time, its log, what it holds."""
    left = {key: value for key, value in entry.items() if key not in ("log", "at", "started")}
    return f"{_time(entry)[11:23]:<12}  {entry['log']:<11}  {json.dumps(left, ensure_ascii=False)}"
