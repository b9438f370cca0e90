"""Compares a container with one that works: devices that only one of them opens, and the lines about these. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from homelab.doctor.case import Case
from homelab.doctor.devices import Row, WantedCards, cards_in, rows_of
from homelab.doctor.reading import ContainerReading
from homelab.doctor.report import Table
from remote_scripts.pve.container_conf import ContainerConf

# Options that change what a device line does.
_OPTIONS = ("unprivileged", "features")


@dataclass(frozen=True)
class Difference:
    """`lacks`: lines of the other that this one hasn't, `only`: the other way round, each about `devices` that differ:
    path -> (here, there).
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
    """This container against a working one, on the same host: which nodes it opens, by whatever lines."""
    rows = {row.path: row for row in case.rows}
    cards = WantedCards(cards_in(model.parsed), "its configuration")
    model_rows = {row.path: row for row in rows_of(case.reading, model, cards)}
    paths = dict.fromkeys([*model_rows, *rows])
    differing = [path for path in paths if _opened(rows.get(path)) != _opened(model_rows.get(path))]
    here, there = (
        _lines(conf, [rows_there[path] for path in differing if path in rows_there])
        for conf, rows_there in ((case.container.parsed, rows), (model.parsed, model_rows))
    )
    return Difference(
        model,
        case.container.id,
        [line for line in there if line not in here],
        [line for line in here if line not in there],
        {path: (_given(rows.get(path)), _given(model_rows.get(path))) for path in differing},
        _notes(case.container, model),
    )


def _opened(row: Row | None) -> tuple[object, ...]:
    """The node of the host that a container opens, how, and by whom; empty: it opens none."""
    if row is None or row.entry is None or not row.entry.created or row.is_barred:
        return ()
    who = ("all",) if row.mode & 0o006 == 0o006 else (row.mode, row.entry.uid, row.entry.gid)
    return row.entry.source_of(row.path), row.access, who


def _given(row: Row | None) -> str:
    if row is None or row.entry is None:
        return "no"
    mode = f" {row.entry.mode:04o}" if row.entry.mode is not None else ""
    rule = "" if row.entry.method == "device" else f", rule {row.rule or 'not known'}"
    return f"{row.entry.method}{mode}{rule}"


def _lines(conf: ContainerConf, rows: list[Row]) -> list[str]:
    """The lines of a configuration that are about these devices."""
    nodes = [row.host for row in rows if row.host]
    rules = [rule.line for rule in conf.rules if any(rule.covers(node.major, node.minor, "") for node in nodes)]
    return [*dict.fromkeys([row.entry.line for row in rows if row.entry] + rules)]


def _notes(container: ContainerReading, model: ContainerReading) -> list[str]:
    notes = []
    for option in _OPTIONS:
        here, there = (conf.parsed.options.get(option, "not set") for conf in (container, model))
        if here != there:
            notes.append(f"{option}: {here}; in container {model.id} {there}")
    if container.was_seen and model.was_seen and container.library_versions != model.library_versions:
        versions = [", ".join(conf.library_versions) or "none" for conf in (container, model)]
        notes.append(f"NVIDIA's libraries: {versions[0]}; in container {model.id} {versions[1]}")
    return notes
