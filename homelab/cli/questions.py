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
        """What isn't shown."""


def no_answer(question: str) -> HomelabError:
    """Nobody answers."""
    return HomelabError(
        wanted=f"an answer to: {question}",
        found="the input has ended",
        why="a question that you were asked isn't answered for you",
        next="answer it with an option, a secret with an environment variable (--help lists both); or run it in a "
        "terminal",
    )


class Lines:
    """Questions as lines, for pipes, and for terminals without colours or cursor."""

    def __init__(self, given: TextIO | None = None, shown: TextIO | None = None) -> None:
        self._given, self._shown = given or sys.stdin, shown or sys.stdout

    def _ask(self, question: str, hint: str) -> str:
        self._shown.write(clean(f"{question} {hint}: ".replace("  ", " ")))
        self._shown.flush()
        line = self._given.readline()
        if not line:
            self._shown.write("\n")
            raise no_answer(question)
        return line.rstrip("\r\n")

    def choose(self, question: str, options: Sequence[Option], default: str) -> str:
        return self._numbers(question, options, [default], several=False)[0]

    def several(self, question: str, options: Sequence[Option], default: Sequence[str]) -> list[str]:
        return self._numbers(question, options, default, several=True)

    def _numbers(self, question: str, options: Sequence[Option], default: Sequence[str], *, several: bool) -> list[str]:
        values = [value for value, _ in options]
        for number, (value, label) in enumerate(options, start=1):
            self._shown.write(clean(f"  {number}{'*' if value in default else ' '} {label}\n"))
        preset = ",".join(str(values.index(one) + 1) for one in default if one in values)
        while True:
            said = self._ask(question, f"[{preset}]" if preset else "").strip() or preset
            words = [word.strip() for word in said.split(",")] if several else [said]
            # A number of the list, or the value itself.
            found = [
                values[int(word) - 1] if word.isdecimal() and 0 < int(word) <= len(values) else word for word in words
            ]
            if found and all(one in values for one in found):
                return list(dict.fromkeys(found))
            self._shown.write(f"  a number from 1 to {len(values)}{', or several with commas' if several else ''}\n")

    def confirm(self, question: str, default: bool) -> bool:
        while True:
            said = self._ask(question, "[Y/n]" if default else "[y/N]").strip().lower()
            if said in ("", "y", "yes", "n", "no"):
                return default if not said else said.startswith("y")
            self._shown.write("  yes or no\n")

    def text(self, question: str, default: str) -> str:
        return self._ask(question, f"[{default}]" if default else "").strip() or default

    def secret(self, question: str) -> str:
        if self._given is sys.stdin and sys.stdin.isatty():
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
        chosen = next((one for one in choices if one.value == default), choices[0])
        return str(_answer(question, self._ask.select(clean(question), choices, default=chosen)))

    def several(self, question: str, options: Sequence[Option], default: Sequence[str]) -> list[str]:
        choices = [self._ask.Choice(clean(label), value=value, checked=value in default) for value, label in options]
        asked = self._ask.checkbox(
            clean(question), choices, validate=lambda found: bool(found) or "choose one at least"
        )
        return [str(one) for one in _answer(question, asked)]

    def confirm(self, question: str, default: bool) -> bool:
        return bool(_answer(question, self._ask.confirm(clean(question), default=default, auto_enter=False)))

    def text(self, question: str, default: str) -> str:
        return str(_answer(question, self._ask.text(clean(question), default=default))).strip()

    def secret(self, question: str) -> str:
        return str(_answer(question, self._ask.password(clean(question))))


def _answer(question: str, asked: Any) -> Any:
    """A widget's answer. Ctrl-D ends the input."""
    try:
        return asked.unsafe_ask()
    except EOFError:
        raise no_answer(question) from None


class Preselected:
    """No questions (`--yes`): what is preselected counts."""

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
    """As widgets where they can be shown, else as lines."""
    both = sys.stdin.isatty() and sys.stdout.isatty()
    if both and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR"):
        return Widgets()
    return Lines()
