"""Questions to a person. Each is a line and its answer a line, so that a terminal, a pipe and a test are one case."""

from __future__ import annotations

import getpass
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from homelab.errors import Mistake
from homelab.later import later
from homelab.text import clean

tables = later("homelab.tables")

AnswerT = TypeVar("AnswerT")


def say(*lines: str) -> None:
    """Shows text, made safe to show; in a terminal folded between words."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 2**20
    for line in [line for text in lines for line in clean(text).split("\n")]:
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


#: What helps to answer a question: `option`, which answers it where nobody is asked, and `text`, which `?` shows.
Help = Mapping[str, str]


def helps(question: str, **values: object) -> Help:
    """What questions.yaml has of a question, about these values."""
    row = tables.read(Path(__file__).with_name("questions.yaml"))[question]
    return {key: text.format(**values) for key, text in row.items()}


@dataclass(frozen=True)
class Ask:
    """`yes`: nobody is asked (`--yes`); the default answers."""

    yes: bool

    def line(self, question: str, default: str, parse: Callable[[str], AnswerT], help_: Help) -> AnswerT:
        """An answer, parsed; at a mistaken one, the question again.

        :raises Mistake: the input has ended; or there is no default, or a mistaken one, and nobody is asked.
        """
        while True:
            if self.yes and not default:
                raise _no_answer(question, help_)
            answer = default if self.yes else _typed(input, f"{question} ", help_).strip() or default
            try:
                return parse(answer)
            except Mistake as mistake:
                if self.yes:
                    raise Mistake(f"{mistake} Another answer: {help_['option']}.") from None
                say(f"  {mistake}")

    def confirm(self, question: str, help_: Help) -> bool:
        """Yes or no; no, where the answer is empty."""
        return self.line(f"{question} [y/N, ? helps]", "n", _yes_or_no, help_)

    def secret(self, question: str, help_: Help) -> str:
        """A line that isn't shown while it is typed.

        :raises Mistake: the input has ended, or nobody is asked.
        """
        if self.yes:
            raise _no_answer(question, help_)
        return _typed(getpass.getpass, f"{question}: ", help_)


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("y", "yes", "n", "no"):
        raise Mistake("y or n")
    return text.lower().startswith("y")


def _typed(read: Callable[[str], str], question: str, help_: Help) -> str:
    while True:
        try:
            answer = (read if sys.stdin.isatty() else input)(clean(question))
        except EOFError:
            raise _no_answer(question, help_) from None
        if not sys.stdin.isatty():
            say("")  # nothing has echoed the answer's end of line
        if answer.strip() != "?" or "text" not in help_:
            return answer
        say(f"  {help_['text']}", f"  Without a question: {help_['option']}.")


def _no_answer(question: str, help_: Help) -> Mistake:
    return Mistake(f"No answer to “{question.strip()}”. Run it in a terminal, or answer in advance: {help_['option']}.")
