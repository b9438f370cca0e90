"""What a person sees of a command that does things in steps, and how it ends where a person says no."""

from __future__ import annotations

import shutil
import signal
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from homelab.text import clean


class Declined(Exception):
    """The person said no, or there is nothing to do: the text says what that means."""


@dataclass
class Output:
    """A command's output and its steps. `done`: the steps that are done."""

    stream: TextIO
    done: list[str] = field(default_factory=list)
    _planned: list[str] = field(default_factory=list)
    _again: str = ""

    def say(self, *lines: str) -> None:
        """Lines, made safe to show; in a terminal, between words and not in the middle of one where they are too long
        for it."""
        width = shutil.get_terminal_size().columns if self.stream.isatty() else 0
        self.show(*(folded for text in lines for line in text.split("\n") for folded in _folded(line, width)))

    def show(self, *lines: str) -> None:
        """Lines to copy, such as commands and a file's: made safe to show, and never folded."""
        for line in lines:
            self.stream.write(clean(line) + "\n")
        self.stream.flush()

    def steps(self, planned: list[str], again: str) -> None:
        """Sets the steps that are done from here on.

        :param again: the command that goes on after an interruption.
        """
        self._planned, self._again = planned, again

    def did(self, step: str) -> None:
        """A step is done."""
        self.done.append(step)
        self.say(f"  done: {step}")

    def say_where_it_stands(self) -> None:
        """After an error or an interruption: what is done, what isn't, how to go on."""
        if not self._planned:
            self.say("Nothing was changed.")
            return
        left = [step for step in self._planned if step not in self.done]
        self.show("Done:", *([f"  {step}" for step in self.done] or ["  nothing"]))
        if left:
            self.show("Perhaps done, since it was under way:", f"  {left[0]}")
            self.show(*(["Not done:", *(f"  {step}" for step in left[1:])] if left[1:] else []))
        self.say(f"To go on, run it again; it continues from what is there: {self._again}")


def _folded(line: str, width: int) -> list[str]:
    """A line as lines of at most `width` characters, indented from the second on; 0: unchanged."""
    indent = line[: len(line) - len(line.lstrip())]
    if not width or len(line) <= width:
        return [line]
    return textwrap.wrap(
        line,
        width,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )


@contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a closed terminal (on Windows SIGBREAK), raise KeyboardInterrupt as Ctrl-C does."""
    names = [name for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        names = []
    before = {name: signal.signal(getattr(signal, name), signal.default_int_handler) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
