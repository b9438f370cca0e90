"""Several runs of Pulumi's CLI side by side, one for each stack, until all have ended; interrupted as Pulumi is: once, they end in good order;
twice, at once.

Each has a process group of its own: Ctrl-C in the terminal, a signal to this process, and a terminal that is closed reach it by this program
alone, and once each.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homelab import events
from homelab.all_stacks.order import startable
from homelab.all_stacks.progress import Progress
from homelab.cli.pulumi import Pulumi

# How often it is looked what the runs have written.
_LOOK_SECONDS = 0.1
_WINDOWS = os.name == "nt"


@dataclass
class Interruptions:
    """How often a person, or who ends the program, has asked for the end. `passed_on`: how often the runs were told."""

    asked: int = 0
    passed_on: int = 0


@contextmanager
def interruptions() -> Iterator[Interruptions]:
    """Counts them, in place of what a signal would do: Ctrl-C, a request to end, a terminal that is closed."""
    found = Interruptions()
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    known = [getattr(signal, name) for name in names if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        known = []

    def count(*_: Any) -> None:
        found.asked += 1

    before = {number: signal.signal(number, count) for number in known}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class _Run:
    """One process. `begun`: when, as `time.monotonic` has it."""

    process: subprocess.Popen[bytes]
    log: events.Growing
    printed: Path
    begun: float = field(default_factory=time.monotonic)

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        with suppress(ProcessLookupError):  # it has ended meanwhile
            # On Windows only CTRL_BREAK reaches a group of its own; Go takes it for an interrupt.
            self.process.send_signal(getattr(signal, "CTRL_BREAK_EVENT") if _WINDOWS else signal.SIGINT)  # noqa: B009


def run_all(
    runs: Sequence[Progress],
    having_shared: Mapping[str, set[str]],
    most: int,
    commands: Mapping[str, tuple[Pulumi, Sequence[str]]],
    folder: Path,
    show: Callable[[Progress | None, str], None],
) -> None:
    """Runs them, those that have a host in common one after the other.

    :param runs: what each has come to is put into these.
    :param having_shared: as of `order.shared`.
    :param most: how many at the same time.
    :param commands: stack -> the CLI, and its arguments.
    :param folder: for what they print (STACK.OPERATION.txt) and their event logs, which are removed.
    :param show: is called with a run of which there is something new, and a line; with None and "" where time has passed.
    """
    by_name = {one.stack: one for one in runs}
    going: dict[str, _Run] = {}
    try:
        with interruptions() as asked:
            while True:
                if asked.asked > asked.passed_on:
                    _pass_on(asked, runs, going, show)
                if not asked.asked:
                    waiting = [one.stack for one in runs if one.state == "waiting"]
                    for name in startable(waiting, going, having_shared, most):
                        going[name] = _started(by_name[name], *commands[name], folder)
                        by_name[name].state = "running"
                        show(by_name[name], f"{by_name[name].operation} begins")
                if not going:
                    break
                for name in [*going]:
                    _look(by_name[name], going, asked, show)
                show(None, "")
                time.sleep(_LOOK_SECONDS)
    except BaseException:
        # Something unforeseen: what runs is ended in good order all the same.
        for run in going.values():
            run.interrupt()
        for run in going.values():
            run.process.wait()
        raise
    finally:
        for run in going.values():
            run.log.__exit__()


def _file(folder: Path, one: Progress, ending: str) -> Path:
    return folder / f"{one.stack.replace('/', '_')}.{one.operation}.{ending}"


def _started(one: Progress, pulumi: Pulumi, arguments: Sequence[str], folder: Path) -> _Run:
    printed, log = _file(folder, one, "txt"), _file(folder, one, "jsonl")
    command = [pulumi.program, *arguments, "--non-interactive", "--color", "never", "--event-log", str(log)]
    with printed.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=pulumi.folder,
            env={**pulumi.environment, **events.ENVIRONMENT, "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=not _WINDOWS,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
    return _Run(process, events.Growing(log), printed)


def _look(
    one: Progress, going: dict[str, _Run], asked: Interruptions, show: Callable[[Progress | None, str], None]
) -> None:
    run = going[one.stack]
    code = run.process.poll()
    one.seconds = time.monotonic() - run.begun
    for line in one.take(run.log.new()):
        show(one, line)
    if code is None:
        return
    del going[one.stack]
    run.log.__exit__()
    run.printed.with_suffix(".jsonl").unlink(missing_ok=True)
    one.end(code, run.printed.read_text("utf-8", errors="replace"), interrupted=asked.asked > 0)
    show(one, one.result)


def _pass_on(
    asked: Interruptions,
    runs: Sequence[Progress],
    going: Mapping[str, _Run],
    show: Callable[[Progress | None, str], None],
) -> None:
    """Tells each run once for each time that it was asked."""
    for one in runs:
        if one.state == "waiting":
            one.state = "not begun"
            show(one, one.result)
    while asked.passed_on < asked.asked:
        asked.passed_on += 1
        for name, run in going.items():
            run.interrupt()
            one = next(each for each in runs if each.stack == name)
            one.state = "stopping"
            again = "; Ctrl-C again ends it at once" if asked.passed_on == 1 else ""
            show(one, f"ends after what is under way{again}" if again else "ends at once")
