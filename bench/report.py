"""Pure: medians and ratios of what was measured, as a Markdown table and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.fleet import Fleet, fleet_json, fleet_table


@dataclass
class Measured:
    """What was seen of one subject.

    ``seconds`` of each timed run, ``cpu`` their processor time; ``peak_bytes``: the most memory of its process tree in the sampled runs; ``connections`` and
    ``commands``: of one run, counted by the host; ``failure``: why it could not be measured.
    """

    name: str
    title: str
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    connections: int = 0
    commands: int = 0
    failure: str | None = None

    @property
    def median(self) -> float | None:
        """Seconds; None when it could not be measured."""
        return statistics.median(self.seconds) if self.seconds and self.failure is None else None


@dataclass(frozen=True)
class Target:
    """``subject`` is to take at most ``at_most`` times as long as ``base``."""

    subject: str
    base: str
    at_most: float


TARGETS = (
    Target("up", "empty", 1.6),
    Target("refresh", "pyinfra", 0.7),
    Target("refresh", "ansible", 0.15),
)

HEAD = ("what", "median s", "min–max s", "ratio", "wanted", "peak MB", "CPU s", "SSH connections, commands")


def ratio(measured: Mapping[str, Measured], target: Target) -> float | None:
    """Median to median; None when either could not be measured."""
    subject, base = measured[target.subject].median, measured[target.base].median
    return None if subject is None or base is None else subject / base


def table(measured: Sequence[Measured], targets: Sequence[Target] = TARGETS) -> str:
    """The Markdown table, a line for each subject."""
    by_name = {one.name: one for one in measured}
    lines: list[tuple[str, ...]] = [HEAD, ("---", "---:", "---:", "---", "---", "---:", "---:", "---:")]
    lines += [_line(one, by_name, [target for target in targets if target.subject == one.name]) for one in measured]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line(one: Measured, by_name: Mapping[str, Measured], targets: Sequence[Target]) -> tuple[str, ...]:
    if one.median is None:
        return (one.title, "not measured", *("",) * 6)
    ratios, wanted = [], []
    for target in targets:
        value = ratio(by_name, target)
        base = by_name[target.base].title.partition(":")[0]
        ratios.append("not measured" if value is None else f"{value:.2f} × {base}")
        verdict = "" if value is None else ", met" if value <= target.at_most else ", **missed**"
        wanted.append(f"at most {target.at_most:g}{verdict}")
    return (
        one.title,
        f"{one.median:.2f}",
        f"{min(one.seconds):.2f}–{max(one.seconds):.2f}",
        "; ".join(ratios),
        "; ".join(wanted),
        f"{one.peak_bytes / 1e6:.0f}",
        f"{statistics.median(one.cpu):.2f}",
        f"{one.connections}, {one.commands}",
    )


#: A handover's two ways, each beside the bare floor's: subject -> base.
HANDOVER = {"take": "bareTake", "return": "bareReturn"}


def handover_table(measured: Sequence[Measured]) -> str:
    """The Markdown table of what `bench.handover` measured; empty where it wasn't."""
    by_name = {one.name: one for one in measured}
    lines = ["| one card in turn | median s | min–max s | ratio |", "| --- | ---: | ---: | --- |"]
    for one in measured:
        base = by_name.get(HANDOVER.get(one.name, ""))
        against = "" if base is None else f"{_times(one, base):.1f} × bare hookscript"
        lines.append(f"| {one.title} | {one.median:.2f} | {min(one.seconds):.2f}–{max(one.seconds):.2f} | {against} |")
    return "\n".join(lines) if measured else ""


def _times(one: Measured, base: Measured) -> float:
    assert one.median is not None and base.median is not None
    return one.median / base.median


def markdown(
    date: str,
    measured: Sequence[Measured],
    about: Mapping[str, str],
    handover: Sequence[Measured] = (),
    fleets: Sequence[Fleet] = (),
) -> str:
    """The page for bench/results."""
    failures = [f"- {one.title}: {' '.join(one.failure.split())}" for one in measured if one.failure]
    parts = [
        f"# {date}",
        *([table(measured)] if measured else []),
        *([handover_table(handover)] if handover else []),
        *([fleet_table(fleets)] if fleets else []),
        *(["Not measured:\n\n" + "\n".join(failures)] if failures else []),
        "\n".join(f"- {key}: {value}" for key, value in about.items()),
        "How it is measured, and what is fair about it: bench/README.md.",
    ]
    return "\n\n".join(parts) + "\n"


def as_json(
    date: str,
    measured: Sequence[Measured],
    about: Mapping[str, str],
    handover: Sequence[Measured] = (),
    fleets: Sequence[Fleet] = (),
) -> dict[str, Any]:
    """The same for programs; seconds with every run."""
    by_name = {one.name: one for one in measured}
    return {
        "date": date,
        "about": dict(about),
        "subjects": {
            one.name: {
                "title": one.title,
                "median": one.median,
                "seconds": [round(value, 4) for value in one.seconds],
                "cpu": [round(value, 4) for value in one.cpu],
                "peakBytes": one.peak_bytes,
                "connections": one.connections,
                "commands": one.commands,
                "failure": one.failure,
            }
            for one in measured
        },
        "handover": {
            one.name: {"median": one.median, "seconds": [round(value, 4) for value in one.seconds]} for one in handover
        },
        "fleets": fleet_json(fleets),
        "ratios": [
            {
                "subject": target.subject,
                "base": target.base,
                "ratio": ratio(by_name, target),
                "wanted": target.at_most,
            }
            for target in TARGETS
            if measured
        ],
    }
