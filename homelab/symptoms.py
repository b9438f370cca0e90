"""Symptoms of a failing NVIDIA stack (remote_scripts/both/symptoms.py), in the program's words and errors.

They are data (nvidia/data/symptoms.yaml), each with its source; a symptom hides others that only repeat its cause. Time
stamps and line breaks of logs are removed before the search (homelab/messages.py).
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from homelab import tables
from homelab.errors import HomelabError
from homelab.messages import Log
from remote_scripts.both.symptoms import QUOTED_CHARACTERS, Context, Symptom, found_in
from remote_scripts.tools.plain import of_plain

_TABLE = Path(__file__).parent / "nvidia/data/symptoms.yaml"
# The programs whose symptoms layers explain; symptoms of the card itself are recognised here.
_MET_BY_LAYERS = re.compile(r"apt|dpkg|dkms|curl|sha256sum|installer|modprobe|nvidia-ctk")


@dataclass(frozen=True, kw_only=True)
class SourcedSymptom(Symptom):
    """A row of the table: a symptom, with where it was found and the day on which that was last seen to be true."""

    source: str
    evidence: Literal["primary", "report"]
    seen: str


@functools.cache
def symptoms() -> tuple[SourcedSymptom, ...]:
    """All symptoms, in the order in which they are answered."""
    return of_plain(tuple[SourcedSymptom, ...], tables.read(_TABLE)["symptoms"], "symptoms")


def packed() -> str:
    """Those that layers of a host's part meet, as JSON; checked, and compiled, where they are used."""
    met = [row for row in tables.read(_TABLE)["symptoms"] if _MET_BY_LAYERS.search(row["where"])]
    return json.dumps([{key: row[key] for key in row if key in Symptom.__dataclass_fields__} for row in met])


def recognise(text: str, context: Context | None = None, beside: str = "") -> list[HomelabError]:
    """The errors behind an output of nvidia-smi, apt, dkms, CUDA or docker, or the kernel log; empty without a symptom.

    :param text: output or log, of any length; each error quotes it.
    :param beside: further output of the same system, whose symptoms hide what only repeats their cause.
    """
    log, context = Log(text), context or Context()
    hidden = {name for row, _ in found_in(symptoms(), Log(beside).text, context) for name in row.hides}
    found = [pair for pair in found_in(symptoms(), log.text, context) if pair[0].name not in hidden]
    return [_error(row, *row.answer(match, log.quote(match, QUOTED_CHARACTERS), context)) for row, match in found]


def _error(row: Symptom, wanted: str, found: str, why: str, next: str) -> HomelabError:
    error = HomelabError(wanted=wanted, found=found, why=why, next=next)
    error.symptom = row.name
    return error
