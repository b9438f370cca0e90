"""Errors of the Proxmox VE API, by type and with the four parts for users (errors.yaml)."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from pathlib import Path

from homelab import tables
from homelab.errors import ApiError, ChangedMeanwhileError, LockHeldError, NoQuorumError, NotThereError
from homelab.text import clean

# Longer than any reason of a node; texts that a guest can make longer, such as a log, have limits of their own.
_REASON_CHARACTERS = 2000
_KINDS = {one.__name__: one for one in (NotThereError, LockHeldError, NoQuorumError, ChangedMeanwhileError)}


def plain(text: str, secrets: Iterable[str] = ()) -> str:
    """A node's text as it may be shown: without control characters and secrets, cut to a length."""
    for secret in secrets:
        if len(secret) > 3:
            text = text.replace(secret, "***")
    safe = clean(text)
    return safe if len(safe) <= _REASON_CHARACTERS else f"{safe[:_REASON_CHARACTERS]} …"


def explained(wanted: str, found: str, status: int, reason: str) -> ApiError:
    """The error for a refused request, or for a task that ended with `reason`.

    :param found: the error's part of that name.
    :param status: HTTP's.
    :param reason: the node's own words.
    """
    row = next(row for row in _rows() if re.search(row["pattern"], reason))
    kind, why, next_step = _KINDS.get(row.get("kind", ""), ApiError), row["why"], row["next"]
    return kind(wanted=wanted, found=found, why=why, next=next_step, status=status, reason=reason)


@functools.cache
def _rows() -> list[dict[str, str]]:
    rows: list[dict[str, str]] = tables.read(Path(__file__).with_suffix(".yaml"))["errors"]
    return rows
