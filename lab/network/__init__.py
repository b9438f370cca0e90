"""What the lab's machines find on the network: package repositories, their keys, files to download.

It is data (repositories.yaml, packages.yaml, driver.yaml), written out in full here and kept as STATE/network.json: the
lab's programs, which have Python's standard library alone, read that (lab.host.network).
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from lab import quick_yaml
from lab.host.state import write_atomically

_FOLDER = Path(__file__).parent
Records = dict[str, list[dict[str, Any]]]


def write(state: Path) -> None:
    """Write STATE/network.json, unless it is there as it should be."""
    path = state / "network.json"
    if not path.exists() or path.read_text(encoding="utf-8") != text():
        write_atomically(path, text())


@cache
def text() -> str:
    """What network.json says."""
    return json.dumps(network(), sort_keys=True) + "\n"


def network() -> dict[str, Any]:
    """All of the data, with every package of every version."""
    found = _load("repositories.yaml")
    groups = _load("packages.yaml")["groups"]
    return {
        "keys": found["keys"],
        "repositories": found["repositories"],
        "sources": found["sources"],
        "installed": found["installed"],
        "files": [file for entry in found["files"] for file in _files(entry)],
        "installers": found["installers"],
        "groups": {name: _group(group) for name, group in groups.items()},
        "driver": _load("driver.yaml"),
    }


def _load(name: str) -> dict[str, Any]:
    data: dict[str, Any] = quick_yaml.load((_FOLDER / name).read_text(encoding="utf-8"))
    return data


def _files(entry: dict[str, Any]) -> list[dict[str, Any]]:
    kept = {key: value for key, value in entry.items() if key not in ("url", "for")}
    return [{"url": _filled(entry["url"], {"distribution": name}), **kept} for name in entry.get("for", [""])]


def _group(group: dict[str, Any]) -> dict[str, Any]:
    """A group's packages by name, and for kernels the pattern of those that are made as they are asked for."""
    if "kernels" in group:
        return _kernels(group)
    records: Records = {}
    for version in map(str, group["versions"]):
        values = _values(version, group.get("revision", ""), releases=bool(group.get("releases")))
        for flavour in group.get("flavours", [{}]):
            _add(records, group.get("packages", {}), values | flavour)
        _add(records, group.get("common", {}), values)
    return {"packages": records}


def _kernels(group: dict[str, Any]) -> dict[str, Any]:
    records: Records = {}
    versions = group["kernels"]["versions"]
    for kernel in versions:
        _add(records, group["packages"], kernel_values(kernel))
    _add(records, group["newest"], kernel_values(versions[-1]))
    return {"packages": records, "kernels": group["kernels"]["pattern"], "templates": group["packages"]}


def kernel_values(kernel: str) -> dict[str, str]:
    """What stands for a kernel in names and values: itself, and a version for its packages."""
    return {"k": kernel, "r": "-".join(kernel.split("-")[:2]).removesuffix("-amd64"), "v": kernel}


def _values(version: str, revision: str, *, releases: bool) -> dict[str, str]:
    values = {"v": version, "r": version + revision, "b": version.split(".")[0]}
    if releases:
        short = ".".join(version.split(".")[:2])
        values |= {"short": short, "release": short.replace(".", "-")}
    return values


def _add(records: Records, templates: dict[str, Any], values: dict[str, str]) -> None:
    for template, body in templates.items():
        record = {"version": values["r"], "architecture": "amd64"} | _filled(body, values)
        versions = records.setdefault(_filled(template, values), [])
        if record not in versions:
            versions.append(record)


def _filled(value: Any, values: dict[str, str]) -> Any:
    """A template with its values put in, at every depth."""
    if isinstance(value, str):
        for key, text in values.items():
            value = value.replace("{" + key + "}", text)
        return value
    if isinstance(value, dict):
        return {_filled(key, values): _filled(item, values) for key, item in value.items()}
    return [_filled(item, values) for item in value] if isinstance(value, list) else value
