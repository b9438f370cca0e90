"""One run of a command: how long it takes, and, in a run of its own, the most memory that its processes have at once.

Memory is the sum of PSS (proportional set size: a page that n processes share counts 1/n in each) over the command's process tree,
from /proc/<pid>/smaps_rollup (Linux 4.14 or later), sampled every `SAMPLE_SECONDS`. The kernel's own peak counters don't fit: a
cgroup's includes the page cache and needs rights, VmHWM of each process counts shared pages several times over. Sampling
costs time on the same processors, so no run is both timed and sampled.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.errors import BenchError

PATIENCE_SECONDS = 300.0
SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Run:
    """`seconds` from start to exit; `cpu`: seconds of processor time of it and its children; `output`: stdout and stderr."""

    seconds: float
    cpu: float
    code: int
    output: str


@dataclass(frozen=True)
class Process:
    """A line of /proc: whose child, in which session."""

    pid: int
    parent: int
    session: int


def run(
    command: Sequence[str], cwd: Path, environment: Mapping[str, str], log: Path, patience: float = PATIENCE_SECONDS
) -> Run:
    """Runs a command, in a session of its own, and waits for it.

    :param log: its output goes there, whole.
    :param patience: in seconds.
    :raises BenchError: it can't be started, or takes longer than that.
    """
    return _run(command, cwd, environment, log, None, patience)


def peak_memory(command: Sequence[str], cwd: Path, environment: Mapping[str, str], log: Path) -> tuple[Run, int]:
    """As `run`, and the most PSS, in bytes, that was seen."""
    sampler = Sampler()
    done = _run(command, cwd, environment, log, sampler, PATIENCE_SECONDS)
    return done, sampler.peak


class Sampler:
    """Watches a process tree from a thread, until told to stop. `peak` in bytes."""

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, leader: int) -> None:
        """Begins to watch the tree of process `leader`."""
        self._thread = threading.Thread(target=self._watch, args=(leader,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends it."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, leader: int) -> None:
        while True:
            self.peak = max(self.peak, sum(map(pss, tree(leader, processes()))))
            if self._stop.wait(SAMPLE_SECONDS):
                return


def _run(
    command: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
    log: Path,
    sampler: Sampler | None,
    patience: float,
) -> Run:
    with log.open("wb") as output:
        started, used = time.perf_counter(), _processor_time()
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise BenchError(
                f"to run {Path(command[0]).name}", str(error), "there is nothing to compare with", "run `make bench`"
            ) from error
        if sampler is not None:
            sampler.start(process.pid)
        try:
            code = process.wait(patience)
            seconds = time.perf_counter() - started
        except subprocess.TimeoutExpired:
            raise BenchError(
                f"{Path(command[0]).name} to end within {patience:.0f} s",
                f"it still runs; its last words: {_text(log)[-500:].strip()}",
                "a run that hangs can't be compared",
                "run it by hand, or on a machine with less to do",
            ) from None
        finally:
            if process.returncode is None:  # also when this program is interrupted
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if sampler is not None:
                sampler.stop()
    return Run(seconds, _processor_time() - used, code, _text(log))


def _processor_time() -> float:
    """Of all this process's children, and theirs, that have ended and were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _text(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


def processes(proc: Path = Path("/proc")) -> list[Process]:
    """Every process there is, from `/proc/<pid>/stat` (proc_pid_stat(5))."""
    found = []
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat = (folder / "stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        # The name, in brackets, may hold anything; after it: state, parent, process group, session.
        fields = stat.rpartition(")")[2].split()
        found.append(Process(int(folder.name), int(fields[1]), int(fields[3])))
    return found


def tree(leader: int, found: Sequence[Process]) -> set[int]:
    """The processes of `leader`'s session, and all their descendants (Ansible's workers have sessions of their own)."""
    members = {process.pid for process in found if process.pid == leader or process.session == leader}
    while True:
        more = {process.pid for process in found if process.parent in members} - members
        if not more:
            return members
        members |= more


def pss(pid: int) -> int:
    """A process's proportional set size in bytes; 0 when it has ended."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        # PermissionError: seen for one that is just being replaced or is ending; another sample follows.
        return 0
    return parse_pss(rollup)


def parse_pss(rollup: bytes) -> int:
    """The `Pss:` line of smaps_rollup, in bytes. A zombie's file has none: 0."""
    for line in rollup.splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return 0
