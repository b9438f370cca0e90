"""Pure: medians and ratios of what was measured, as a Markdown table and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.bench.fleet import Fleet, fleet_json, fleet_table, growth_table, judged


@dataclass
class Measured:
    """What was seen of one subject.

    `seconds` of each timed run, `cpu` their processor time; `peak_bytes`: the most memory of its process tree in the sampled runs; `connections` and
    `commands`: of one run, counted by the host; `host_programs`: how many programs one run starts there; `host_cpu`: processor time of the
    simulated host in each timed run; `failure`: why it could not be measured.
    """

    name: str
    title: str
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    connections: int = 0
    commands: int = 0
    host_programs: int = 0
    host_cpu: list[float] = field(default_factory=list)
    failure: str | None = None

    @property
    def median(self) -> float | None:
        """Seconds; None when it could not be measured."""
        return statistics.median(self.seconds) if self.seconds and self.failure is None else None


@dataclass(frozen=True)
class Target:
    """`subject` is to take at most `at_most` times as long as `base`; or `at_most` seconds more, where it is `beyond` it."""

    subject: str
    base: str
    at_most: float
    beyond: bool = False

    def value(self, measured: Mapping[str, Measured]) -> float | None:
        """Of the medians; None when either could not be measured."""
        subject, base = measured[self.subject].median, measured[self.base].median
        if subject is None or base is None:
            return None
        return subject - base if self.beyond else subject / base


TARGETS = (Target("up", "empty", 0.8, beyond=True), Target("refresh", "empty", 2.1))
#: The most memory in MB.
MEMORY = {"up": 250.0}
#: The same on a real kernel, and the least that does it.
FLOOR = {"up": "homelab: first `up` on a real kernel", "script": "a script by hand: the same, and nothing else"}
FLOOR_TARGETS = (Target("up", "script", 1.2),)
#: The API's requests of a first `up`: subjects -> their titles.
API = {
    "api": "homelab: its requests of a first `up`, through its SSH connection",
    "pvesh": "proxmoxer over SSH: the same, by `pvesh`",
}
API_TARGETS = (Target("api", "pvesh", 1.0),)
HANDOVER_TARGETS = (Target("take", "bareTake", 2.5), Target("return", "bareReturn", 2.3))
FIRST_TARGETS = (Target("up", "pyinfra", 6.5, beyond=True), Target("up", "ansible", 0.65))
#: Subjects of a first run -> their titles.
FIRST = {
    "up": "homelab: first `up`, with the restart",
    "pyinfra": "pyinfra: the same job, with the restart",
    "ansible": "Ansible: the same job, with the restart",
}


@dataclass(frozen=True, kw_only=True)
class Results:
    """All that was measured, in the page's order; empty: that part wasn't.

    `first`: from a stock host; `floor`: that, on a real kernel; `again`: with nothing to do; `api`: requests of Proxmox VE's API; `handover`: one card in turn; `downtime`: of a VM; `fleets`: stacks by size.
    """

    first: Sequence[Measured] = ()
    floor: Sequence[Measured] = ()
    again: Sequence[Measured] = ()
    api: Sequence[Measured] = ()
    handover: Sequence[Measured] = ()
    downtime: Sequence[Measured] = ()
    fleets: Sequence[Fleet] = ()

    @property
    def failures(self) -> list[Measured]:
        """What could not be measured."""
        return [one for part in (self.first, self.again) for one in part if one.failure]


HEAD = (
    "what",
    "median s",
    "min–max s",
    "ratio",
    "wanted",
    "peak MB",
    "CPU s",
    "SSH connections, commands",
    "host: programs, CPU s",
)


def table(measured: Sequence[Measured], targets: Sequence[Target] = TARGETS) -> str:
    """The Markdown table, a line for each subject."""
    by_name = {one.name: one for one in measured}
    lines: list[tuple[str, ...]] = [HEAD, ("---", "---:", "---:", "---", "---", "---:", "---:", "---:", "---:")]
    lines += [_line(one, by_name, [target for target in targets if target.subject == one.name]) for one in measured]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line(one: Measured, by_name: Mapping[str, Measured], targets: Sequence[Target]) -> tuple[str, ...]:
    if one.median is None:
        return (one.title, "not measured", *("",) * (len(HEAD) - 2))
    ratios, wanted = [], []
    for target in targets:
        value, base = target.value(by_name), by_name[target.base]
        told = f"{one.median - (base.median or 0):.2f} s beyond {base.title.partition(':')[0]}"
        ratios.append("not measured" if not base.median else f"{told}, {one.median / base.median:.2f} ×")
        wanted.append(judged(value, target.at_most, " s" if target.beyond else " ×"))
    if one.name in MEMORY and one.peak_bytes:
        wanted.append(judged(one.peak_bytes / 1e6, MEMORY[one.name], " MB"))
    return (
        one.title,
        f"{one.median:.2f}",
        f"{min(one.seconds):.2f}–{max(one.seconds):.2f}",
        "; ".join(ratios),
        "; ".join(wanted),
        f"{one.peak_bytes / 1e6:.0f}" if one.peak_bytes else "",
        f"{statistics.median(one.cpu):.2f}" if one.cpu else "",
        f"{one.connections}, {one.commands}" if one.connections or one.peak_bytes else "",
        f"{one.host_programs or '–'}, {statistics.median(one.host_cpu):.2f}" if one.host_cpu else "",
    )


def downtime_table(measured: Sequence[Measured]) -> str:
    """The Markdown table of what `bench.downtime` measured; empty where it wasn't."""
    lines = ["| how long a VM is off | median s | min–max s | beyond its own shutdown and start, s |"]
    lines.append("| --- | ---: | ---: | ---: |")
    own = next((one.median for one in measured if one.name == "own"), None)
    for one in measured:
        if one.median is None:
            lines.append(f"| {one.title} | not measured | | |")
            continue
        beyond = "" if own is None or one.name == "own" else f"{one.median - own:+.2f}"
        lines.append(f"| {one.title} | {one.median:.2f} | {min(one.seconds):.2f}–{max(one.seconds):.2f} | {beyond} |")
    return "\n".join(lines) if measured else ""


def markdown(date: str, results: Results, about: Mapping[str, str]) -> str:
    """The page for tests/bench/results."""
    failures = [f"- {one.title}: {' '.join(one.failure.split())}" for one in results.failures if one.failure]
    parts = [
        f"# {date}",
        table(results.first, FIRST_TARGETS) if results.first else "",
        table(results.floor, FLOOR_TARGETS) if results.floor else "",
        table(results.again) if results.again else "",
        table(results.api, API_TARGETS) if results.api else "",
        table(results.handover, HANDOVER_TARGETS) if results.handover else "",
        downtime_table(results.downtime),
        fleet_table(results.fleets),
        growth_table(results.fleets),
        "Not measured:\n\n" + "\n".join(failures) if failures else "",
        "\n".join(f"- {key}: {value}" for key, value in about.items()),
        "How it is measured, and what is fair about it: tests/bench/README.md.",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def as_json(date: str, results: Results, about: Mapping[str, str]) -> dict[str, Any]:
    """The same for programs; seconds with every run."""
    return {
        "date": date,
        "about": dict(about),
        "first": _details(results.first),
        "floor": _details(results.floor),
        "subjects": _details(results.again),
        "api": _details(results.api),
        "handover": _details(results.handover),
        "downtime": _seconds(results.downtime),
        "fleets": fleet_json(results.fleets),
        "firstRatios": _ratios(results.first, FIRST_TARGETS),
        "floorRatios": _ratios(results.floor, FLOOR_TARGETS),
        "ratios": _ratios(results.again, TARGETS),
        "apiRatios": _ratios(results.api, API_TARGETS),
        "handoverRatios": _ratios(results.handover, HANDOVER_TARGETS),
    }


def _details(measured: Sequence[Measured]) -> dict[str, Any]:
    return {
        one.name: {
            "title": one.title,
            "median": one.median,
            "seconds": [round(value, 4) for value in one.seconds],
            "cpu": [round(value, 4) for value in one.cpu],
            "peakBytes": one.peak_bytes,
            "connections": one.connections,
            "commands": one.commands,
            "hostPrograms": one.host_programs,
            "hostCpu": [round(value, 4) for value in one.host_cpu],
            "failure": one.failure,
        }
        for one in measured
    }


def _seconds(measured: Sequence[Measured]) -> dict[str, Any]:
    return {one.name: {"median": one.median, "seconds": [round(value, 4) for value in one.seconds]} for one in measured}


def _ratios(measured: Sequence[Measured], targets: Sequence[Target]) -> list[dict[str, Any]]:
    by_name = {one.name: one for one in measured}
    return [
        {
            "subject": target.subject,
            "base": target.base,
            "beyondSeconds" if target.beyond else "ratio": target.value(by_name),
            "wanted": target.at_most,
        }
        for target in targets
        if measured
    ]
