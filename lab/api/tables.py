"""Answers as Proxmox VE's commands print them in JSON; for people they print tables, which nothing here reads."""

from __future__ import annotations

import json
from typing import Any

FORMATS = ("text", "json")


def formatted(answer: Any, form: str) -> str:
    """An answer as text; empty for none."""
    if answer is None:
        return ""
    if form == "text" and not isinstance(answer, dict | list):
        return f"{answer}\n"
    return json.dumps(answer, separators=(",", ":"), sort_keys=True, ensure_ascii=False) + "\n"
