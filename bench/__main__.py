"""`make bench`: each tool shows first that it can do the job; then they run in turn, with nothing to change, and are compared.

Exit code: 0 when everything could be measured, also when a target is missed: this is no test.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from bench import job as jobs
from bench import measure, report, subjects
from bench.errors import BenchError
from bench.fleet import Fleet, measure_fleets
from bench.handover import measure_handover
from bench.job import Job
from bench.report import Measured
from bench.subjects import PROJECT, Programs, Subject
from engine import install
from lab import Lab, LabError

SCENARIO = "rtx5090"


class Bench:
    """One run of everything, on one lab host, in one temporary folder."""

    def __init__(self, folder: Path, lab: Lab, engine: install.Engine) -> None:
        self.folder = folder
        self.lab = lab
        self.programs = Programs(engine, folder)
        self._runs = 0

    def run(self, subject: Subject, *arguments: str) -> measure.Run:
        """One timed run.

        :raises BenchError: it fails.
        """
        done = measure.run([*subject.command, *arguments], subject.cwd, subject.environment, self._log(subject))
        _succeeded(subject, done)
        return done

    def run_unchanged(self, subject: Subject) -> measure.Run:
        """One timed run that must find nothing to do.

        :raises BenchError: it fails, or changes something.
        """
        done = self.run(subject)
        _unchanged(subject, done)
        return done

    def peak_memory(self, subject: Subject) -> int:
        """The most memory of its processes, in bytes, in an untimed run that must find nothing to do."""
        done, peak = measure.peak_memory(subject.command, subject.cwd, subject.environment, self._log(subject))
        _succeeded(subject, done)
        _unchanged(subject, done)
        return peak

    def _log(self, subject: Subject) -> Path:
        self._runs += 1
        return self.folder / f"{self._runs:03}-{subject.name}.log"

    # --- before measuring ---

    def take_job(self) -> Job:
        """`up` on the stock host says what the job is; then `destroy`, so that the peers begin with a stock host too."""
        stock_words = jobs.words(self.lab.root)
        gpus = yaml.safe_load((PROJECT / "lab" / "stacks" / f"{SCENARIO}.yaml").read_text(encoding="utf-8"))["gpus"]
        self.programs.prepare(self.lab, gpus)
        self.run(self.programs.up())
        job = jobs.collect(self.folder / "job", self.lab.root, stock_words)
        job.write_facts(self.lab)
        self.run(self.programs.destroy())
        return job

    def prove(self, peer: Subject, job: Job) -> None:
        """The peer takes the stock host to the same state as the program does, and its second run changes nothing.

        :raises BenchError: it doesn't.
        """
        self.lab.reset()
        self.bridge()
        first = self.run(peer, *peer.first)
        if peer.changes(first.output) is None:
            raise BenchError(
                f"{peer.title}: changes on a stock host", "none", "it isn't doing the job", "see its files"
            )
        self.lab.reboot()
        self.run_unchanged(peer)
        differing = job.differences(self.lab.root)
        bound = jobs.on_vfio(self.lab.root)
        if differing or bound != job.functions:
            raise BenchError(
                f"{peer.title}: the host as `up` leaves it",
                f"other files: {', '.join(differing) or 'none'}; on vfio-pci: {', '.join(bound) or 'nothing'}",
                "only the same job can be compared",
                "correct the peer's files in bench/",
            )

    def bridge(self) -> None:
        """The lab's sftp serves the host's tree as /, its commands see that tree under its real path: a link makes both one.

        A real host needs none. The link is used only when a peer uploads something.
        """
        link = self.lab.root / str(self.lab.root)[1:]
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to("/".join([".."] * (len(self.lab.root.parts) - 2)))

    # --- measuring ---

    def count(self, subject: Subject, into: Measured) -> None:
        """What the host sees of one run."""
        mark = self.lab.mark()
        self.run_unchanged(subject)
        self.lab.wait_idle()
        into.connections, into.commands = len(self.lab.connections(mark)), len(self.lab.commands(mark))


def _succeeded(subject: Subject, done: measure.Run) -> None:
    if done.code != 0:
        raise BenchError(
            f"{subject.title}: exit code 0",
            f"{done.code}; its last words: {done.output[-800:].strip()}",
            "a failed run can't be compared",
            "run `.venv/bin/python -m bench --keep`: the logs stay in the folder that it names",
        )


def _unchanged(subject: Subject, done: measure.Run) -> None:
    changes = subject.changes(done.output)
    if changes is not None:
        errors = [line.strip() for line in done.output.splitlines() if "error" in line.lower()]
        raise BenchError(
            f"{subject.title}: nothing done",
            "; ".join([changes, *errors])[:1500],
            "only runs that do nothing are compared",
            "run `.venv/bin/python -m bench --keep`: the logs stay in the folder that it names",
        )


def say(text: str) -> None:
    """Progress, for people, on stderr: stdout is for the table."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def measure_all(bench: Bench, rounds: int, memory_rounds: int) -> list[Measured]:
    """Everything that can be measured, in the table's order; what can't has its `failure`."""
    job = bench.take_job()
    programs = bench.programs
    everyone = [
        programs.empty(),
        programs.up(),
        programs.refresh(),
        subjects.pyinfra(job),
        subjects.ansible(job, bench.lab),
    ]
    results = {subject.name: Measured(subject.name, subject.title) for subject in everyone}

    def attempt(chosen: Sequence[Subject], do: Callable[[Subject, Measured], None]) -> None:
        """``do`` for each that hasn't failed yet; one's failure isn't the others'."""
        for subject in chosen:
            one = results[subject.name]
            if one.failure is None:
                try:
                    do(subject, one)
                except BenchError as error:
                    one.failure = str(error)
                    say(f"{subject.title}: not measured\n{error}")

    try:
        say("each peer on a stock host: first run, reboot, second run without change")
        attempt(everyone[3:], lambda subject, _: bench.prove(subject, job))
        bench.lab.reset()
        bench.run(programs.up())
        bench.run(programs.empty())  # its first run creates the stack
        say(f"warm-up, then {rounds} rounds of all in turn, then {memory_rounds} with memory sampled")
        attempt(everyone, bench.count)
        for _ in range(rounds):
            attempt(everyone, lambda subject, one: _add(one, bench.run_unchanged(subject)))
        for _ in range(memory_rounds):
            attempt(everyone, lambda subject, one: _keep_peak(one, bench.peak_memory(subject)))
    finally:
        subjects.close_connections(job)
    return list(results.values())


def _add(one: Measured, run: measure.Run) -> None:
    one.seconds.append(run.seconds)
    one.cpu.append(run.cpu)


def _keep_peak(one: Measured, peak: int) -> None:
    one.peak_bytes = max(one.peak_bytes, peak)


def about(engine: install.Engine, rounds: int, memory_rounds: int) -> dict[str, str]:
    """What the numbers depend on; no name of a machine, no path."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "machine": f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.machine()}, {platform.system()} {_kernel()}",
        "load at the end": f"{os.getloadavg()[0]:.1f} (1 minute)",
        "Python": platform.python_version(),
        "Pulumi": f"CLI {engine.version}, SDK {version_of('pulumi')}, "
        f"pulumi-command {version_of('pulumi-command')} ({engine.plugin} plugin)",
        "pyinfra": version_of("pyinfra"),
        "Ansible": f"ansible-core {version_of('ansible-core')}, {_ssh()}",
        "host": f"the lab's scenario {SCENARIO}, over SSH on this machine",
        "runs": f"{rounds} timed rounds, all in turn; {memory_rounds} more with memory sampled (PSS of the process tree)",
    }


def version_of(package: str) -> str:
    """Of an installed package; the page is also written when a peer is missing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _ssh() -> str:
    program = shutil.which("ssh")
    if program is None:
        return "no ssh on PATH"
    said = subprocess.run([program, "-V"], capture_output=True, text=True, stdin=subprocess.DEVNULL).stderr
    return said.split(",")[0].strip()


def _kernel() -> str:
    return ".".join(platform.release().split(".")[:2])


def write(
    results: Sequence[Measured],
    handover: Sequence[Measured],
    fleets: Sequence[Fleet],
    facts: dict[str, str],
    folder: Path,
) -> str:
    """Writes ``<date>.md`` and ``latest.json``; returns the page."""
    date = time.strftime("%Y-%m-%d")
    page = report.markdown(date, results, facts, handover, fleets)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{date}.md").write_text(page, encoding="utf-8")
    values: dict[str, Any] = report.as_json(date, results, facts, handover, fleets)
    (folder / "latest.json").write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return page


def positive(text: str) -> int:
    """A number of rounds or hosts, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number, 1 or more; found {text}")
    return number


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=positive, default=7, help="timed runs of each (default 7)")
    parser.add_argument("--memory-rounds", type=positive, default=3, help="sampled runs of each (default 3)")
    parser.add_argument("--results", type=Path, default=PROJECT / "bench" / "results", help="folder for the results")
    parser.add_argument("--only", choices=("handover", "fleet"), help="measure that alone: no peer is needed")
    parser.add_argument(
        "--hosts",
        type=positive,
        nargs="+",
        default=[1, 4, 12],
        help="sizes of stacks for `--only fleet` (default 1 4 12)",
    )
    parser.add_argument("--keep", action="store_true", help="keep the logs of all runs, and say where")
    wanted = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        engine = install.ensure({**os.environ, "PULUMI_HOME": str(install.cache_folder() / "home")})
        results: list[Measured] = []
        if wanted.only is None:
            with Lab.start(SCENARIO, state=folder / "lab") as lab:
                results = measure_all(Bench(folder, lab, engine), wanted.rounds, wanted.memory_rounds)
        handover: list[Measured] = []
        fleets: list[Fleet] = []
        if wanted.only == "fleet":
            say(f"one stack with {', '.join(map(str, wanted.hosts))} hosts, one after another")
            fleets = measure_fleets(folder, engine, wanted.hosts)
        else:
            say(f"one card in turn: {wanted.rounds} rounds of both ways, by turns with a bare hookscript")
            handover = measure_handover(folder / "shared", wanted.rounds)
    except (BenchError, LabError, install.EngineError) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        if wanted.keep:
            say(f"kept: {folder}")
        else:
            shutil.rmtree(folder)
    print(write(results, handover, fleets, about(engine, wanted.rounds, wanted.memory_rounds), wanted.results))
    return 1 if any(one.failure for one in results) else 0


if __name__ == "__main__":
    sys.exit(main())
