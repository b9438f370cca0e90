"""What `homelab report` passes on of the doctor's JSON: machine, cards, versions, and what is well. Pure.

It has no network or PCI address, no name of a host or guest, no key, no serial number, no UUID: only the keys below are
passed on, and only texts of the expected form. Of a problem it tells only stage and turn, as the doctor's sentences
name hosts and guests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

#: Whether an owner has tried `pulumi destroy`: `not tried`, all was as before, or something wasn't.
Undo = Literal["not tried", "all as before", "something was not as before"]

# Texts as the programs print them. What is no text is passed on as it is.
_VERSION = r"[0-9][\w.+~:-]{0,60}"
_TEXT = r"[\w ()@.,/+;:&'-]{1,120}"
_WORD = r"[a-z][a-z0-9_-]{0,40}"
_ID = r"[0-9a-f]{4}:[0-9a-f]{4}"
_GUEST = {"kind": _WORD, "well": "", "findings": {"stage": _WORD, "turn": _WORD}}
_HOST = {
    **_GUEST,
    "machine": _TEXT,
    "processor": _TEXT,
    "kernel": _VERSION,
    "pve": _VERSION,
    "loader": _TEXT,
    "driver": _VERSION,
    "iommu": {"groups": ""},
    "cards": {"model": _TEXT, "use": _WORD, "functions": {"id": _ID, "subsystem": _ID, "driver": _WORD, "group": ""}},
}


def passed_on(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A part for each host and guest of `homelab doctor --json`."""
    return [_part(report) for report in values["reports"]]


def _part(report: Mapping[str, Any]) -> dict[str, Any]:
    if report.get("kind") != "host":
        return dict(_kept(report, _GUEST))
    uses = {gpu["slot"]: gpu["use"] for gpu in report["gpus"]}
    cards = [{**card, "use": uses.get(card["slot"], "")} for card in report["cards"]]
    return dict(_kept({**report, "cards": cards}, _HOST))


def _kept(value: Any, keys: Any) -> Any:
    """:param keys: those that are passed on, each with its own; of a text the pattern."""
    if isinstance(keys, Mapping) and isinstance(value, Mapping):
        return {key: _kept(value.get(key), keys[key]) for key in keys}
    if isinstance(value, list):
        return [_kept(item, keys) for item in value]
    if isinstance(value, str):
        return value if isinstance(keys, str) and re.fullmatch(keys, value, re.ASCII) else ""
    return value if value is None or isinstance(value, bool | int) else None
