"""Questions to a person. Each is a line and its answer a line, so that a terminal, a pipe and a test are one case."""

from __future__ import annotations

import getpass
import re
import shutil
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from homelab.errors import Mistake
from homelab.text import clean

AnswerT = TypeVar("AnswerT")


def say(*lines: str) -> None:
    """Shows text, made safe to show; in a terminal folded between words."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 2**20
    for line in [line for text in lines for line in text.split("\n")]:
        indent = line[: len(line) - len(line.lstrip())] + "  "
        show(textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False))


def show(*lines: str) -> None:
    """Shows lines to copy, such as commands: made safe to show, and never folded."""
    sys.stdout.write("".join(f"{clean(line)}\n" for line in lines))
    sys.stdout.flush()


def to_type(text: str) -> str:
    """What an error says to do next, as it is done by this command: there may be no project yet."""
    text = text.replace("run `pulumi up` again", "run `homelab init` again")
    return re.sub(
        r"\b((?:gpus|iommu|vms|containers)(?:\.[\w-]+)+)(?:: (true\b|\[[^]]*\])|(?<=\.allowGroupMembers))",
        lambda setting: f'--set "{setting[1]}={setting[2] or "[ADDRESS]"}"',
        text,
    )


class Help(NamedTuple):
    """What helps to answer a question."""

    option: str
    """What answers it where nobody is asked."""
    text: str = ""
    """What `?` shows; empty: the question's own parser knows `?`."""


@dataclass(frozen=True)
class Ask:
    """`yes`: nobody is asked (`--yes`); the default answers."""

    yes: bool

    def line(self, question: str, default: str, parse: Callable[[str], AnswerT], helps: Help) -> AnswerT:
        """An answer, parsed; at a mistaken one, the question again.

        :raises Mistake: the input has ended; or there is no default, or a mistaken one, and nobody is asked.
        """
        while True:
            if self.yes and not default:
                raise _no_answer(question, helps)
            answer = default if self.yes else _typed(input, f"{question} ", helps).strip() or default
            try:
                return parse(answer)
            except Mistake as mistake:
                if self.yes:
                    raise Mistake(f"{mistake} Another answer: {helps.option}.") from None
                say(f"  {mistake}")

    def confirm(self, question: str, helps: Help) -> bool:
        """Yes or no; no, where the answer is empty."""
        return self.line(f"{question} [y/N, ? helps]", "n", _yes_or_no, helps)

    def secret(self, question: str, helps: Help) -> str:
        """A line that isn't shown while it is typed.

        :raises Mistake: the input has ended, or nobody is asked.
        """
        if self.yes:
            raise _no_answer(question, helps)
        return _typed(getpass.getpass, f"{question}: ", helps)


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("y", "yes", "n", "no"):
        raise Mistake("y or n")
    return text.lower().startswith("y")


def _typed(read: Callable[[str], str], question: str, helps: Help) -> str:
    while True:
        try:
            answer = (read if sys.stdin.isatty() else input)(clean(question))
        except EOFError:
            raise _no_answer(question, helps) from None
        if not sys.stdin.isatty():
            say("")  # nothing has echoed the answer's end of line
        if answer.strip() != "?" or not helps.text:
            return answer
        say(*(f"  {line}" for line in (helps.text, f"Without a question: {helps.option}.")))


def _no_answer(question: str, helps: Help) -> Mistake:
    return Mistake(f"No answer to “{question.strip()}”. Run it in a terminal, or answer in advance: {helps.option}.")
