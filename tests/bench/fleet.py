"""How one stack grows with its hosts: first `up`, no change, `up --refresh`, `destroy`, the state's size, on so many hosts of the lab.

All hosts are computed on this machine, whose processors they share with the program: a first `up` of many hosts is mostly their work. What is the
program's own is in the processor time, which counts the command and its children alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lab import Lab
from lab.engine import install
from tests.bench import measure
from tests.bench.errors import BenchError
from tests.bench.subjects import PROJECT, Programs, Subject

SCENARIO = "rtx5090"
#: What is run, in this order, and its title.
VERBS = {"first": "first `up`", "again": "no change", "refresh": "`up --refresh`", "destroy": "`destroy`"}
#: Hosts -> the most processor seconds of a first `up`.
FIRST_CPU = {12: 20.0}


@dataclass(frozen=True)
class Fleet:
    """`hosts`: how many; of each of `VERBS` the `seconds`, and the `cpu` seconds of the command and its children; `peak_bytes`: the most
    memory of its processes where nothing changes; `state_bytes`: of the state after the first `up`.
    """

    hosts: int
    seconds: dict[str, float]
    cpu: dict[str, float]
    peak_bytes: int
    state_bytes: int


def measure_fleets(folder: Path, engine: install.Engine, sizes: Sequence[int]) -> list[Fleet]:
    """One stack for each of `sizes`, one after another.

    :param folder: for the labs and the stacks.
    :raises BenchError: a run fails, or changes something where it mustn't.
    """
    return [_measured(folder / f"fleet-{size}", engine, size) for size in sizes]


def _measured(folder: Path, engine: install.Engine, size: int) -> Fleet:
    folder.mkdir(parents=True)
    gpus = yaml.safe_load((PROJECT / "lab" / "stacks" / f"{SCENARIO}.yaml").read_text(encoding="utf-8"))["gpus"]
    seconds, cpu = {}, {}
    with ExitStack() as running:
        stack = _stack(folder / "stack", engine, size, gpus, running)

        def run(name: str, subject: Subject) -> None:
            done = _run(subject, folder)
            if name not in ("first", "destroy"):
                _require_no_change(subject, done)
            seconds[name], cpu[name] = done.seconds, done.cpu

        run("first", stack.up())
        state = stack.state_bytes()
        run("again", stack.up())
        run("refresh", stack.refresh())
        up = stack.up()
        sampled, peak = measure.peak_memory(up.command, up.cwd, up.environment, folder / "peak.log")
        _require_no_change(up, sampled)
        run("destroy", stack.destroy())
    return Fleet(size, seconds, cpu, peak, state)


def _stack(folder: Path, engine: install.Engine, size: int, gpus: dict[str, Any], running: ExitStack) -> Programs:
    folder.mkdir()
    labs = {
        f"pve{number}": running.enter_context(Lab.start(SCENARIO, state=folder / f"lab{number}"))
        for number in range(1, size + 1)
    }
    programs = Programs(engine, folder)
    programs.prepare_hosts(labs, dict.fromkeys(labs, gpus))
    return programs


def _run(subject: Subject, folder: Path) -> measure.Run:
    done = measure.run(subject.command, subject.cwd, subject.environment, folder / f"{subject.name}.log")
    if done.code != 0:
        raise BenchError(
            f"{subject.title}: exit code 0",
            f"{done.code}; its last words: {done.output[-800:].strip()}",
            "a failed run says nothing of many hosts",
            "run `.venv/bin/python -m tests.bench --only fleet --keep`: the logs stay in the folder that it names",
        )
    return done


def _require_no_change(subject: Subject, done: measure.Run) -> None:
    changes = subject.changes(done.output)
    if changes is not None:
        raise BenchError(
            f"{subject.title}: nothing done", changes, "a run with changes is another one", "see `make up` by hand"
        )


def judged(value: float | None, at_most: float, unit: str) -> str:
    """What is wanted, and whether it is met; None: it could not be measured."""
    verdict = "" if value is None else ", met" if value <= at_most else ", **missed**"
    return f"at most {at_most:g}{unit}{verdict}"


def fleet_table(fleets: Sequence[Fleet]) -> str:
    """The Markdown table; empty where none was measured. The processor time is the program's own; the hosts, too, are computed here."""
    head = [
        "hosts",
        *(f"{title}, CPU s (s)" for title in VERBS.values()),
        "wanted of the first",
        "peak MB, no change",
        "state MB",
    ]
    lines = [head, ["---:"] * len(head)]
    for one in fleets:
        runs = [f"{one.cpu[name]:.1f} ({one.seconds[name]:.1f})" for name in VERBS]
        wanted = judged(one.cpu["first"], FIRST_CPU[one.hosts], " CPU s") if one.hosts in FIRST_CPU else ""
        lines.append([str(one.hosts), *runs, wanted, f"{one.peak_bytes / 1e6:.0f}", f"{one.state_bytes / 1e6:.2f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if fleets else ""


def fleet_json(fleets: Sequence[Fleet]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {
            "hosts": one.hosts,
            "seconds": {name: round(value, 3) for name, value in one.seconds.items()},
            "cpu": {name: round(value, 3) for name, value in one.cpu.items()},
            "peakBytes": one.peak_bytes,
            "stateBytes": one.state_bytes,
        }
        for one in fleets
    ]


def growth_table(fleets: Sequence[Fleet]) -> str:
    """What each further host adds, between the smallest stack and the largest, and how often the largest takes the smallest's time; empty for one size."""
    ordered = sorted(fleets, key=lambda one: one.hosts)
    if len(ordered) < 2:
        return ""
    small, large = ordered[0], ordered[-1]
    more = large.hosts - small.hosts
    lines = [
        f"| {small.hosts} → {large.hosts} hosts | times, CPU | for each further host, CPU s | s |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, title in VERBS.items():
        times = large.cpu[name] / small.cpu[name]
        used, each = (
            (of[name] - at[name]) / more for of, at in ((large.cpu, small.cpu), (large.seconds, small.seconds))
        )
        lines.append(f"| {title} | {times:.1f} | {used:.2f} | {each:.2f} |")
    each = (large.state_bytes - small.state_bytes) / more
    lines.append(f"| the state | {large.state_bytes / small.state_bytes:.1f} | {each / 1e6:.3f} MB | |")
    return "\n".join(lines)
