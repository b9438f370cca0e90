"""Compares a container with one that works: devices that only one of them opens, and the lines about these. Pure."""

from __future__ import annotations

from typing import Any

from homelab.doctor.devices import Case, Row
from homelab.doctor.report import Table

# Options that change what a device line does.
_OPTIONS = ("unprivileged", "features")


def compared(case: Case, model: Case) -> tuple[dict[str, Any], list[Table]]:
    """This container against a working one, on the same host: which nodes it opens, by whatever lines. For the report's
    JSON (docs/outputs.md, `like`), and as tables.
    """
    rows, model_rows = ({row.path: row for row in one.rows} for one in (case, model))
    paths = dict.fromkeys([*model_rows, *rows])
    differing = [path for path in paths if _opened(rows.get(path)) != _opened(model_rows.get(path))]
    here, there = _lines(case, differing), _lines(model, differing)
    lacks, only = [line for line in there if line not in here], [line for line in here if line not in there]
    devices = [[path, _given(rows.get(path)), _given(model_rows.get(path))] for path in differing]
    like = {
        "id": model.container.id,
        "name": model.container.name,
        "lines": lacks,
        "onlyHere": only,
        "devices": [dict(zip(("path", "here", "there"), device, strict=True)) for device in devices],
        "differences": _differences(case, model),
    }
    return like, [
        Table(f"devices, beside {model.name}", ["device", case.name, model.name], devices),
        Table(f"lines that {model.name} has and {case.name} lacks", ["line"], [[line] for line in lacks]),
        Table(f"lines that {case.name} has and {model.name} lacks", ["line"], [[line] for line in only]),
    ]


def _opened(row: Row | None) -> tuple[object, ...]:
    """The node of the host that a container opens, how, and by whom; empty: it opens none."""
    if row is None or row.entry is None or not row.entry.created or row.is_barred:
        return ()
    who = ("all",) if row.mode & 0o006 == 0o006 else (row.mode, row.entry.uid, row.entry.gid)
    return row.source, row.access, who


def _given(row: Row | None) -> str:
    if row is None or row.entry is None:
        return "no"
    mode = f" {row.entry.mode:04o}" if row.entry.mode is not None else ""
    rule = "" if row.entry.method == "device" else f", rule {row.rule or 'not known'}"
    return f"{row.entry.method}{mode}{rule}"


def _lines(case: Case, paths: list[str]) -> list[str]:
    """The lines of a configuration that are about these devices."""
    rows = [row for row in case.rows if row.path in paths]
    nodes = [row.host for row in rows if row.host]
    rules = [rule.line for rule in case.conf.rules if any(rule.covers(node.major, node.minor, "") for node in nodes)]
    return [*dict.fromkeys([row.entry.line for row in rows if row.entry] + rules)]


def _differences(case: Case, model: Case) -> list[str]:
    found = []
    for option in _OPTIONS:
        here, there = (one.conf.options.get(option, "not set") for one in (case, model))
        if here != there:
            found.append(f"{option}: {here}; in {model.name} {there}")
    here, there = (", ".join(one.library_versions) or "none" for one in (case, model))
    if case.container.was_seen and model.container.was_seen and here != there:
        found.append(f"NVIDIA's libraries: {here}; in {model.name} {there}")
    return found
