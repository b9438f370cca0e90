"""Compares a container with one that works: devices, lines and majors that only one of them has. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from homelab.doctor.case import Case
from homelab.doctor.devices import Row, WantedCards, cards_in, rows_of
from homelab.doctor.reading import ContainerReading
from homelab.doctor.report import Table
from remote_scripts.shared.container_conf import ContainerConf

# Options that change what a device line does.
_OPTIONS = ("unprivileged", "features")


@dataclass(frozen=True)
class Difference:
    """`lacks`: lines of the other that this one hasn't, `only`: the other way round; `devices`: path -> (here,
    there).
    """

    model: ContainerReading
    ctid: int
    lacks: list[str]
    only: list[str]
    devices: dict[str, tuple[str, str]]
    notes: list[str]

    @property
    def tables(self) -> list[Table]:
        """What is shown."""
        here, there = f"container {self.ctid}", f"container {self.model.id}"
        devices = [[path, *pair] for path, pair in self.devices.items()]
        return [
            Table(f"devices, beside {there}", ["device", here, there], devices),
            Table(f"lines that {there} has and {here} lacks", ["line"], [[line] for line in self.lacks]),
            Table(f"lines that {here} has and {there} lacks", ["line"], [[line] for line in self.only]),
        ]

    @property
    def data(self) -> dict[str, Any]:
        """For the report's JSON."""
        return {
            "id": self.model.id,
            "name": self.model.name,
            "lines": self.lacks,
            "onlyHere": self.only,
            "devices": [{"path": path, "here": a, "there": b} for path, (a, b) in self.devices.items()],
            "differences": self.notes,
        }


def compared(case: Case, model: ContainerReading) -> Difference:
    """This container against a working one, on the same host."""
    conf, model_conf = case.container.parsed, model.parsed
    rows = {row.path: row for row in case.rows}
    model_rows = {
        row.path: row for row in rows_of(case.reading, model, WantedCards(cards_in(model_conf), "its configuration"))
    }
    devices = {}
    for path in dict.fromkeys([*model_rows, *rows]):
        pair = _given(rows.get(path)), _given(model_rows.get(path))
        if pair[0] != pair[1]:
            devices[path] = pair
    return Difference(
        model,
        case.container.id,
        _lacking(model_conf, conf),
        _lacking(conf, model_conf),
        devices,
        _notes(case.container, model, case),
    )


def _given(row: Row | None) -> str:
    if row is None or row.entry is None:
        return "no"
    mode = f" {row.entry.mode:04o}" if row.entry.mode is not None else ""
    rule = "" if row.entry.method == "device" else f", rule {row.rule or 'not known'}"
    return f"{row.entry.method}{mode}{rule}"


def _lacking(conf: ContainerConf, other: ContainerConf) -> list[str]:
    """Lines of a configuration that the other one hasn't; spaces, spelling of the separator and the number of dev[n]
    don't count.
    """
    normalized = {_normal(line) for line in other.lines}
    return [line for line in dict.fromkeys(conf.lines) if _normal(line) not in normalized]


def _normal(line: str) -> str:
    key, _, value = re.sub(r"\s*[:=]\s*", ":", line, count=1).partition(":")
    if key.startswith("dev"):
        key, value = "dev", ",".join(sorted(value.removeprefix("path=").split(",")))
    return f"{key}:{' '.join(value.split())}"


def _notes(container: ContainerReading, model: ContainerReading, case: Case) -> list[str]:
    notes = []
    for option in _OPTIONS:
        here, there = (conf.parsed.options.get(option, "not set") for conf in (container, model))
        if here != there:
            notes.append(f"{option}: {here}; in container {model.id} {there}")
    here_majors, there_majors = ({rule.major for rule in conf.parsed.rules} for conf in (container, model))
    names = {major: name for name, major in reversed(case.reading.majors.items())}
    for major in sorted(major for major in there_majors - here_majors if major is not None):
        notes.append(
            f"container {model.id} allows the major {major} ({names.get(major, 'of no device here')}), this one not"
        )
    if container.was_seen and model.was_seen and container.library_versions != model.library_versions:
        versions = [", ".join(conf.library_versions) or "none" for conf in (container, model)]
        notes.append(f"NVIDIA's libraries: {versions[0]}; in container {model.id} {versions[1]}")
    return notes
