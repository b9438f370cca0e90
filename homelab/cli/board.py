"""What a person sees while several stacks run: in a terminal one table, which changes in its place; elsewhere a line for each thing that happens."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from homelab.all_stacks.progress import Progress, State, in_time
from homelab.text import clean

_STYLES: dict[State, str] = {
    "running": "bold cyan",
    "stopping": "yellow",
    "done": "green",
    "failed": "bold red",
    "interrupted": "yellow",
    "left out": "yellow",
}
# Where not all rows have room, these come first.
_RANKS: tuple[State, ...] = ("stopping", "running", "failed", "interrupted")
# Below so many columns a table does without the hosts, and without the time.
_FOR_HOSTS, _FOR_TIME = 80, 50
_TIMES_A_SECOND = 5.0


def _drawn(runs: Sequence[Progress], width: int, height: int) -> Table:
    """The table, no higher than `height`."""
    room = max(height - 4, 3)
    rows = list(runs)
    hidden: list[Progress] = []
    if len(rows) > room:
        rows.sort(key=lambda one: _RANKS.index(one.state) if one.state in _RANKS else len(_RANKS))
        rows, hidden = rows[: room - 1], rows[room - 1 :]
        rows.sort(key=list(runs).index)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=False, width=width)
    table.add_column("Stack", no_wrap=True, overflow="ellipsis", max_width=max(12, width // 4))
    if width >= _FOR_HOSTS:
        table.add_column("Hosts", no_wrap=True, overflow="ellipsis", max_width=width // 4)
    table.add_column("State", no_wrap=True)
    table.add_column("", no_wrap=True, overflow="ellipsis", ratio=1)
    if width >= _FOR_TIME:
        table.add_column("Time", no_wrap=True, justify="right")
    for one in rows:
        said = one.result if one.over else one.now
        cells = [
            Text(clean(one.stack)),
            *([Text(clean(one.hosts))] if width >= _FOR_HOSTS else []),
            Text(one.state, style=_STYLES.get(one.state, "dim")),
            Text("" if said == one.state else clean(said)),
            *([Text(in_time(one.seconds) if one.seconds else "")] if width >= _FOR_TIME else []),
        ]
        table.add_row(*cells)
    if hidden:
        states = [one.state for one in hidden]
        counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        table.add_row(
            Text(f"and {len(hidden)}", style="dim"), *([""] if width >= _FOR_HOSTS else []), "", Text(counted)
        )
    return table


class Board:
    """Shows the runs."""

    def __init__(self, stream: TextIO, runs: Sequence[Progress]) -> None:
        self._stream, self._runs = stream, runs
        self._console = Console(file=stream, highlight=False)
        self._live: Live | None = None
        self._drawn_at = 0.0
        self._gone = False

    @contextmanager
    def shown(self) -> Iterator[Board]:
        """While they run."""
        if not self._console.is_terminal or self._console.is_dumb_terminal:
            yield self
            return
        # No thread of its own: what is drawn is what was just read, and a terminal that is gone is noticed here.
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        try:
            with suppress(OSError):
                self._live.start()
            yield self
        finally:
            with suppress(OSError):
                self._live.stop()

    def __call__(self, one: Progress | None, line: str) -> None:
        """There is something new. A terminal, or a reader, that is gone doesn't end the runs."""
        if self._gone:
            return
        try:
            if self._live is not None:
                if one is None and time.monotonic() - self._drawn_at < 1 / _TIMES_A_SECOND:
                    return
                self._drawn_at = time.monotonic()
                size = self._console.size
                self._live.update(_drawn(self._runs, size.width, size.height), refresh=True)
            elif one is not None:
                self._stream.write(f"{clean(one.stack)}: {clean(line)}\n")
                self._stream.flush()
        except OSError:
            self._gone = True
