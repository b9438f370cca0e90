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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from lab import Lab, LabError
from lab.engine import install
from tests.bench import job as jobs
from tests.bench import measure, programs, report, subjects
from tests.bench.api import measure_api
from tests.bench.downtime import measure_downtime
from tests.bench.errors import BenchError
from tests.bench.fleet import measure_fleets
from tests.bench.floor import measure_floor
from tests.bench.handover import measure_handover
from tests.bench.job import Job
from tests.bench.report import Measured, Results
from tests.bench.subjects import PROJECT, Programs, Subject

SCENARIO = "rtx5090"
#: What is measured, in this order.
PARTS = {
    "first": "from a stock host, through its restart, to the verified card, by this program and both peers",
    "floor": "the same on a real kernel, beside a script by hand",
    "again": "nothing to do",
    "api": "the requests of Proxmox VE's API that a first `up` makes, beside proxmoxer over SSH",
    "handover": "one card in turn, beside a bare hookscript, and an hour in which nothing happens",
    "downtime": "how long a VM is off when it gets a card and gives it back",
    "fleet": "stacks of so many hosts",
}


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
        gpus = yaml.safe_load((PROJECT / "lab" / "stacks" / f"{SCENARIO}.yaml").read_text(encoding="utf-8"))["gpus"]
        self.programs.prepare(self.lab, gpus)
        self.run(self.programs.up())
        job = jobs.collect(self.folder / "job", self.lab.root)
        job.write_facts(self.lab)
        self.run(self.programs.destroy())
        return job

    def first(self, peer: Subject, job: Job, into: Measured) -> None:
        """One timed run that takes a stock host, through a restart, to the same state as the program does.

        :raises BenchError: it doesn't.
        """
        done, host_cpu = self._first(peer, job, programs.processor_time)
        _add(into, done)
        into.host_cpu.append(host_cpu)

    def count_first(self, peer: Subject, job: Job, into: Measured) -> None:
        """The same, and not timed: its programs on the host are counted.

        :raises BenchError: it doesn't, or they can't be.
        """
        _, count = self._first(peer, job, programs.counted)
        into.host_programs = int(count)

    def _first(self, peer: Subject, job: Job, looked_at: programs.Look) -> tuple[measure.Run, float]:
        self.lab.reset()
        self.bridge()
        with looked_at(self.lab, self.folder) as seen:
            done = self.run(peer, *peer.first)
            self.lab.wait_idle()
        if peer.changes(done.output) is None:
            raise BenchError(
                f"{peer.title}: changes on a stock host", "none", "it isn't doing the job", "see its files"
            )
        differing = job.differences(self.lab.root)
        bound = jobs.on_vfio(self.lab.root)
        if differing or bound != job.functions:
            raise BenchError(
                f"{peer.title}: the host as `up` leaves it",
                f"other files: {', '.join(differing) or 'none'}; on vfio-pci: {', '.join(bound) or 'nothing'}",
                "only the same job can be compared",
                "correct the peer's files in bench/",
            )
        return done, seen()

    def prove(self, peer: Subject, job: Job) -> None:
        """The peer does the job, and its second run changes nothing.

        :raises BenchError: it doesn't.
        """
        self._first(peer, job, programs.processor_time)
        self.run_unchanged(peer)

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


def measure_first(bench: Bench, rounds: int) -> list[Measured]:
    """From the stock host to the verified one, by each in turn, with the host's restart in it. The first run of each isn't timed."""
    job = bench.take_job()
    program = bench.programs.up()
    peers = [subjects.pyinfra(job), subjects.ansible(job, bench.lab)]
    results = {one.name: Measured(one.name, report.FIRST[one.name]) for one in (program, *peers)}
    try:
        for number in range(rounds + 1):
            for subject in (program, *peers):
                one = results[subject.name]
                if one.failure is not None:
                    continue
                try:
                    (bench.first if number else bench.count_first)(subject, job, one)
                except BenchError as error:
                    one.failure = str(error)
                    say(f"{one.title}: not measured\n{error}")
                if subject is program:
                    bench.run(bench.programs.destroy())
    finally:
        subjects.close_connections(job)
    return list(results.values())


def _succeeded(subject: Subject, done: measure.Run) -> None:
    if done.code != 0:
        raise BenchError(
            f"{subject.title}: exit code 0",
            f"{done.code}; its last words: {done.output[-800:].strip()}",
            "a failed run can't be compared",
            "run `.venv/bin/python -m tests.bench --keep`: the logs stay in the folder that it names",
        )


def _unchanged(subject: Subject, done: measure.Run) -> None:
    changes = subject.changes(done.output)
    if changes is not None:
        errors = [line.strip() for line in done.output.splitlines() if "error" in line.lower()]
        raise BenchError(
            f"{subject.title}: nothing done",
            "; ".join([changes, *errors])[:1500],
            "only runs that do nothing are compared",
            "run `.venv/bin/python -m tests.bench --keep`: the logs stay in the folder that it names",
        )


def say(text: str) -> None:
    """Progress, for people, on stderr: stdout is for the table."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def measure_again(bench: Bench, rounds: int, memory_rounds: int) -> list[Measured]:
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
        """`do` for each that hasn't failed yet; one's failure isn't the others'."""
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


def write(results: Results, facts: dict[str, str], folder: Path) -> str:
    """Writes `<date>.md` and `latest.json`.

    :returns: the page.
    """
    date = time.strftime("%Y-%m-%d")
    folder.mkdir(parents=True, exist_ok=True)
    page = report.markdown(date, results, facts)
    (folder / f"{date}.md").write_text(page, encoding="utf-8")
    values = report.as_json(date, results, facts)
    (folder / "latest.json").write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return page


def positive(text: str) -> int:
    """For argparse: a whole number, 1 or more."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number, 1 or more; found {text}")
    return number


@contextmanager
def _bench(folder: Path, engine: install.Engine) -> Iterator[Bench]:
    folder.mkdir()
    with Lab.start(SCENARIO, state=folder / "lab") as lab:
        yield Bench(folder, lab, engine)


def measure_parts(parts: Sequence[str], wanted: argparse.Namespace, folder: Path, engine: install.Engine) -> Results:
    """What of `PARTS` is asked for, one after another."""
    found: dict[str, Any] = {}
    say(
        f"{'; '.join(PARTS[part] for part in parts)}: {wanted.rounds} rounds, stacks of {', '.join(map(str, wanted.hosts))} hosts"
    )
    if "first" in parts:
        with _bench(folder / "first", engine) as bench:
            found["first"] = measure_first(bench, wanted.rounds)
    if "floor" in parts:
        found["floor"] = measure_floor(folder / "floor", engine, wanted.rounds)
    if "again" in parts:
        with _bench(folder / "again", engine) as bench:
            found["again"] = measure_again(bench, wanted.rounds, wanted.memory_rounds)
    if "api" in parts:
        found["api"] = measure_api(folder / "api", wanted.rounds)
    if "handover" in parts:
        found["handover"] = measure_handover(folder / "shared", wanted.rounds)
    if "downtime" in parts:
        found["downtime"] = measure_downtime(folder / "downtime", wanted.rounds)
    if "fleet" in parts:
        found["fleets"] = measure_fleets(folder, engine, wanted.hosts)
    return Results(**found)


def main(arguments: list[str] | None = None) -> int:
    """The command line.

    :returns: the exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=positive, default=5, help="timed runs of each (default 5)")
    parser.add_argument("--memory-rounds", type=positive, default=3, help="sampled runs of each (default 3)")
    parser.add_argument(
        "--results", type=Path, default=PROJECT / "tests" / "bench" / "results", help="folder for the results"
    )
    parser.add_argument("--only", choices=PARTS, help="measure that alone")
    parser.add_argument(
        "--hosts", type=positive, nargs="+", default=[1, 4, 12], help="sizes of stacks for `fleet` (default 1 4 12)"
    )
    parser.add_argument("--keep", action="store_true", help="keep the logs of all runs, and say where")
    wanted = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        engine = install.ensure({**os.environ, "PULUMI_HOME": str(install.cache_folder() / "home")})
        results = measure_parts(
            [wanted.only] if wanted.only else [part for part in PARTS if part != "floor"], wanted, folder, engine
        )
    except (BenchError, LabError, install.EngineError) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        if wanted.keep:
            say(f"kept: {folder}")
        else:
            shutil.rmtree(folder)
    print(write(results, about(engine, wanted.rounds, wanted.memory_rounds), wanted.results))
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(main())
