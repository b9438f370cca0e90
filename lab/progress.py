"""A run of Pulumi for a person at a terminal: each message when it comes, and one line of what is under way.

Pulumi's own display has a row for each resource, and repeats every message below; who wants that runs `pulumi` itself.
"""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.text import Text

from homelab import events
from homelab.events import Diagnostic, Event, Step

_PAUSE_SECONDS = 0.1
_SHOWN = ("info", "info#err", "warning")


def run(command: list[str], environment: Mapping[str, str], console: Console) -> int:
    """Runs a command of Pulumi's that takes --event-log. Returns its exit code.

    Args:
        command: it asks nothing.
        console: whose terminal it is.
    """
    with tempfile.TemporaryDirectory() as folder:
        log, printed = Path(folder) / "events", Path(folder) / "printed"
        log.touch()
        with printed.open("wb") as output, _ctrl_c_for_the_engine(console):
            process = subprocess.Popen(
                [*command, "--non-interactive", "--event-log", str(log)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env={**environment, **events.ENVIRONMENT},
            )  # fmt: skip
            logged = show(follow(log, lambda: process.poll() is not None), console)
        if process.returncode != 0:
            errors = events.errors(logged) or [printed.read_text(encoding="utf-8", errors="replace").strip()]
            console.print(*(Text(error) for error in errors), sep="\n\n")
        return process.returncode


def follow(path: Path, has_ended: Callable[[], bool]) -> Iterator[Event]:
    """Yields the events of a log while the engine writes it, and what is left of it once the engine has ended.

    Args:
        path: of the log, which is there, empty or not.
    """
    rest = b""
    with path.open("rb") as log:
        while True:
            is_last = has_ended()
            *lines, rest = (rest + log.read()).split(b"\n")
            yield from (event for line in lines if (event := events.of_line(line)) is not None)
            if is_last:
                return
            time.sleep(_PAUSE_SECONDS)


def show(run_events: Iterable[Event], console: Console) -> list[Event]:
    """Shows a run's events while they come, and returns them."""
    shown: list[Event] = []
    under_way: dict[str, str] = {}
    done = 0
    with console.status("") as status:
        for event in run_events:
            shown.append(event)
            if isinstance(event, Step) and event.changes:
                was_under_way = under_way.pop(event.name, None) is not None
                if event.ended:
                    done += was_under_way
                else:
                    under_way[event.name] = ""
            elif isinstance(event, Diagnostic) and event.passing:
                latest = next(reversed(under_way), "")
                under_way |= {latest: event.text} if latest else {}
            elif isinstance(event, Diagnostic) and event.severity in _SHOWN and event.text:
                console.print(Text(event.text))
            name, said = next(reversed(under_way.items()), ("", ""))
            parts = [f"{done} done", *([f"now {name}"] if name else []), *([said] if said else [])]
            status.update(Text(", ".join(parts), no_wrap=True, overflow="ellipsis"))
    return shown


@contextmanager
def _ctrl_c_for_the_engine(console: Console) -> Iterator[None]:
    """Ctrl-C reaches the engine by the terminal: it ends what is under way, and a second one ends it at once."""

    def tell(*_: object) -> None:
        console.print("Stopping after what is under way; Ctrl-C once more stops at once.")

    before = signal.signal(signal.SIGINT, tell)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
