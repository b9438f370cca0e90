"""Questions to a person: in a terminal, as lines of text in a pipe, or none at all.

Widgets and colours are questionary's, where both ends are a terminal that can show them. Everywhere else a question is
a line, and its answer the next line of standard input.
"""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Sequence
from typing import Any, Protocol, TextIO

from homelab.errors import HomelabError
from homelab.text import clean

Option = tuple[str, str]


class Questions(Protocol):
    """`options`: value and label; `default`: what is preselected, or what an empty answer means."""

    def choose(self, question: str, options: Sequence[Option], default: str) -> str:
        """One of the values."""

    def several(self, question: str, options: Sequence[Option], default: Sequence[str]) -> list[str]:
        """Some of the values, one at least."""

    def confirm(self, question: str, default: bool) -> bool:
        """Yes or no."""

    def text(self, question: str, default: str) -> str:
        """A line."""

    def secret(self, question: str) -> str:
        """A line that isn't shown while it is typed."""


def no_answer(question: str) -> HomelabError:
    """The error of a question that gets no answer."""
    return HomelabError(
        wanted=f"an answer to: {question}",
        found="the input has ended",
        why="a question that you were asked isn't answered for you",
        next="answer it with an option, a secret with an environment variable (--help lists both); or run it in a "
        "terminal",
    )


class Lines:
    """Questions as lines, for pipes, and for terminals without colours or cursor."""

    def __init__(self, source: TextIO | None = None, display: TextIO | None = None) -> None:
        self._input, self._output = source or sys.stdin, display or sys.stdout

    def _ask(self, question: str, hint: str) -> str:
        self._output.write(clean(f"{question} {hint}: ".replace("  ", " ")))
        self._output.flush()
        line = self._input.readline()
        if not line:
            self._output.write("\n")
            raise no_answer(question)
        return line.rstrip("\r\n")

    def choose(self, question: str, options: Sequence[Option], default: str) -> str:
        return self._numbers(question, options, [default], several=False)[0]

    def several(self, question: str, options: Sequence[Option], default: Sequence[str]) -> list[str]:
        return self._numbers(question, options, default, several=True)

    def _numbers(self, question: str, options: Sequence[Option], default: Sequence[str], *, several: bool) -> list[str]:
        values = [value for value, _ in options]
        for number, (value, label) in enumerate(options, start=1):
            self._output.write(clean(f"  {number}{'*' if value in default else ' '} {label}\n"))
        preset = ",".join(str(values.index(value) + 1) for value in default if value in values)
        while True:
            answer = self._ask(question, f"[{preset}]" if preset else "").strip() or preset
            words = [word.strip() for word in answer.split(",")] if several else [answer]
            # A number of the list, or the value itself.
            chosen = [
                values[int(word) - 1] if word.isdecimal() and 0 < int(word) <= len(values) else word for word in words
            ]
            if chosen and all(value in values for value in chosen):
                return list(dict.fromkeys(chosen))
            self._output.write(f"  a number from 1 to {len(values)}{', or several with commas' if several else ''}\n")

    def confirm(self, question: str, default: bool) -> bool:
        while True:
            answer = self._ask(question, "[Y/n]" if default else "[y/N]").strip().lower()
            if answer in ("", "y", "yes", "n", "no"):
                return default if not answer else answer.startswith("y")
            self._output.write("  yes or no\n")

    def text(self, question: str, default: str) -> str:
        return self._ask(question, f"[{default}]" if default else "").strip() or default

    def secret(self, question: str) -> str:
        if self._input is sys.stdin and sys.stdin.isatty():
            try:
                return getpass.getpass(clean(f"{question}: "))
            except EOFError:
                raise no_answer(question) from None
        return self._ask(question, "")


class Widgets:
    """Questions in a terminal, by questionary."""

    def __init__(self) -> None:
        import questionary  # noqa: PLC0415  (homelab/later.py)

        self._ask = questionary

    def choose(self, question: str, options: Sequence[Option], default: str) -> str:
        choices = [self._ask.Choice(clean(label), value=value) for value, label in options]
        chosen = next((choice for choice in choices if choice.value == default), choices[0])
        return str(_answer(question, self._ask.select(clean(question), choices, default=chosen)))

    def several(self, question: str, options: Sequence[Option], default: Sequence[str]) -> list[str]:
        choices = [self._ask.Choice(clean(label), value=value, checked=value in default) for value, label in options]
        # Where the cursor begins, a mark is: Enter alone takes what is marked.
        prompt = self._ask.checkbox(
            clean(question),
            choices,
            initial_choice=next((choice for choice in choices if choice.checked), None),
            instruction="(space marks or unmarks; Enter takes what is marked)",
            validate=lambda values: bool(values) or "choose one at least",
        )
        return [str(value) for value in _answer(question, prompt)]

    def confirm(self, question: str, default: bool) -> bool:
        return bool(_answer(question, self._ask.confirm(clean(question), default=default, auto_enter=False)))

    def text(self, question: str, default: str) -> str:
        return str(_answer(question, self._ask.text(clean(question), default=default))).strip()

    def secret(self, question: str) -> str:
        return str(_answer(question, self._ask.password(clean(question))))


def _answer(question: str, prompt: Any) -> Any:
    """A widget's answer. Ctrl-D ends the input."""
    try:
        return prompt.unsafe_ask()
    except EOFError:
        raise no_answer(question) from None


class Preselected:
    """No questions (`--yes`): the preselected answers."""

    def choose(self, question: str, options: Sequence[Option], default: str) -> str:
        return default

    def several(self, question: str, options: Sequence[Option], default: Sequence[str]) -> list[str]:
        return list(default)

    def confirm(self, question: str, default: bool) -> bool:
        return default

    def text(self, question: str, default: str) -> str:
        return default

    def secret(self, question: str) -> str:
        raise no_answer(question)


def questions() -> Questions:
    """Widgets where the terminal can show them, else lines."""
    in_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if in_terminal and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR"):
        return Widgets()
    return Lines()
