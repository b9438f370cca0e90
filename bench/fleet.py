"""How one stack grows with its hosts: first `up`, no change, `up --refresh`, `destroy`, the state's size, on so many hosts of the lab; and as many stacks of one host each.

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

from bench import measure
from bench.errors import BenchError
from bench.subjects import PROJECT, Programs, Subject
from engine import install
from lab import Lab

SCENARIO = "rtx5090"
#: What is run, in this order, and its title.
VERBS = {"first": "first `up`", "again": "no change", "refresh": "`up --refresh`", "destroy": "`destroy`"}


@dataclass(frozen=True)
class Fleet:
    """`hosts`: how many, in so many `stacks`, one after another; of each of `VERBS` the `seconds`, and the `cpu` seconds of the command and its children; `peak_bytes`: the most
    memory of its processes where nothing changes; `state_bytes`: of the state after the first `up`.
    """

    hosts: int
    stacks: int
    seconds: dict[str, float]
    cpu: dict[str, float]
    peak_bytes: int
    state_bytes: int


def measure_fleets(folder: Path, engine: install.Engine, sizes: Sequence[int]) -> list[Fleet]:
    """One stack for each of `sizes`, one after another.

    :param folder: for the labs and the stacks.
    :raises BenchError: a run fails, or changes something where it mustn't.
    """
    return [_measured(folder / f"fleet-{size}", engine, [size]) for size in sizes]


def measure_apart(folder: Path, engine: install.Engine, sizes: Sequence[int]) -> list[Fleet]:
    """The same, with a stack of its own for each host.

    :raises HomelabError: as `measure_fleets`.
    """
    return [_measured(folder / f"apart-{size}", engine, [1] * size) for size in sizes]


def _measured(folder: Path, engine: install.Engine, stacks: Sequence[int]) -> Fleet:
    """Stacks of so many hosts each. Every verb is run on all of them before the next one."""
    folder.mkdir(parents=True)
    gpus = yaml.safe_load((PROJECT / "lab" / "stacks" / f"{SCENARIO}.yaml").read_text(encoding="utf-8"))["gpus"]
    seconds, cpu = dict.fromkeys(VERBS, 0.0), dict.fromkeys(VERBS, 0.0)
    with ExitStack() as running:
        every = [_stack(folder / f"stack-{number}", engine, size, gpus, running) for number, size in enumerate(stacks)]

        def on_each(name: str, subjects: Sequence[Subject]) -> None:
            for subject in subjects:
                done = _run(subject, folder)
                if name not in ("first", "destroy"):
                    _require_no_change(subject, done)
                seconds[name] += done.seconds
                cpu[name] += done.cpu

        on_each("first", [one.up() for one in every])
        state = sum(one.state_bytes() for one in every)
        on_each("again", [one.up() for one in every])
        on_each("refresh", [one.refresh() for one in every])
        up = every[0].up()
        sampled, peak = measure.peak_memory(up.command, up.cwd, up.environment, folder / "peak.log")
        _require_no_change(up, sampled)
        on_each("destroy", [one.destroy() for one in every])
    return Fleet(sum(stacks), len(stacks), seconds, cpu, peak, state)


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
            "run `.venv/bin/python -m bench --only fleet --keep`: the logs stay in the folder that it names",
        )
    return done


def _require_no_change(subject: Subject, done: measure.Run) -> None:
    changes = subject.changes(done.output)
    if changes is not None:
        raise BenchError(
            f"{subject.title}: nothing done", changes, "a run with changes is another one", "see `make up` by hand"
        )


def fleet_table(fleets: Sequence[Fleet]) -> str:
    """The Markdown table; empty where none was measured."""
    head = ["hosts", *(f"{title}, s (CPU s)" for title in VERBS.values()), "peak MB, no change", "state MB"]
    lines = [head, ["---:"] * len(head)]
    for one in fleets:
        runs = [f"{one.seconds[name]:.1f} ({one.cpu[name]:.1f})" for name in VERBS]
        hosts = str(one.hosts) if one.stacks == 1 else f"{one.hosts} in {one.stacks} stacks"
        lines.append([hosts, *runs, f"{one.peak_bytes / 1e6:.0f}", f"{one.state_bytes / 1e6:.2f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if fleets else ""


def fleet_json(fleets: Sequence[Fleet]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {
            "hosts": one.hosts,
            "stacks": one.stacks,
            "seconds": {name: round(value, 3) for name, value in one.seconds.items()},
            "cpu": {name: round(value, 3) for name, value in one.cpu.items()},
            "peakBytes": one.peak_bytes,
            "stateBytes": one.state_bytes,
        }
        for one in fleets
    ]


def in_one_stack(fleets: Sequence[Fleet]) -> list[Fleet]:
    """Those whose hosts share a stack, by their number."""
    return sorted((one for one in fleets if one.stacks == 1), key=lambda one: one.hosts)


def growth_table(fleets: Sequence[Fleet]) -> str:
    """What each further host adds, between the smallest stack and the largest, and how often the largest takes the smallest's time; empty for one size."""
    ordered = in_one_stack(fleets)
    if len(ordered) < 2:
        return ""
    small, large = ordered[0], ordered[-1]
    more = large.hosts - small.hosts
    lines = [
        f"| {small.hosts} → {large.hosts} hosts | times | for each further host, s | processor, s |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, title in VERBS.items():
        times = large.seconds[name] / small.seconds[name]
        each, used = (
            (of[name] - at[name]) / more for of, at in ((large.seconds, small.seconds), (large.cpu, small.cpu))
        )
        lines.append(f"| {title} | {times:.1f} | {each:.2f} | {used:.2f} |")
    each = (large.state_bytes - small.state_bytes) / more
    lines.append(f"| the state | {large.state_bytes / small.state_bytes:.1f} | {each / 1e6:.3f} MB | |")
    return "\n".join(lines)
