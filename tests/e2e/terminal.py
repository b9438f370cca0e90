"""A terminal, as a person sees it: what a program writes, shown on a screen of a width, with all that has scrolled away above it."""

from __future__ import annotations

import re
from pathlib import Path

import pexpect
import pyte

from tests.waiting import PATIENCE

LINES = 50


class _Screen(pyte.Screen):
    """Of which it is kept what scrolls away. pyte's own screen with a history can be paged, which takes a third of its time."""

    def __init__(self, columns: int, lines: int) -> None:
        self.above: list[str] = []
        super().__init__(columns, lines)

    def index(self) -> None:
        top, bottom = self.margins or (0, self.lines - 1)
        if self.cursor.y == bottom:
            self.above.append(self.line(top))
        super().index()

    def line(self, number: int) -> str:
        """As it is shown, without what is empty at its end."""
        cells = self.buffer[number]
        return "".join([cells[x].data if x in cells else " " for x in range(max(cells, default=-1) + 1)]).rstrip()


Conversation = list[tuple[str, str]]
#: What a terminal takes for itself.
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A program at a terminal, which shows what it writes; and whoever sits there.

    :param keeps: also what was shown only meanwhile (`seen`).
    """

    def __init__(
        self,
        command: list[str],
        columns: int,
        environment: dict[str, str],
        folder: str | Path,
        *,
        keeps: bool = False,
        lines: int = LINES,
    ) -> None:
        self._written = ""
        self._screen = _Screen(columns, lines)
        self._stream = pyte.Stream(self._screen)
        self._shown = [""] * lines
        #: The screens that were there after each thing that was written.
        self.seen: list[list[str]] = []
        self._keeps = keeps
        self.spawned: pexpect.spawn[str] = pexpect.spawn(
            command[0],
            command[1:],
            cwd=str(folder),
            env=environment,
            dimensions=(lines, columns),
            encoding="utf-8",
            codec_errors="replace",
            timeout=PATIENCE,
        )
        self.spawned.logfile_read = self

    def answer(self, *conversation: tuple[str, str], status: int | None = 0) -> str:
        """Each question awaited, and answered, until the program ends; all that was written.

        :param status: with which it must end; None: it doesn't matter.
        """
        for question, keys in conversation:
            self.spawned.expect_exact(question)
            self.spawned.send(keys)
        self.spawned.expect(pexpect.EOF)
        self.spawned.close()
        assert status is None or self.spawned.exitstatus == status, "\n".join(self.lines())
        return _CODES.sub("", self._written)

    def write(self, text: str) -> None:
        self._written += text
        self._stream.feed(text)
        if self._keeps and self._screen.dirty:
            self.seen.append(self._display())

    def flush(self) -> None:
        """Nothing is kept back."""

    def _display(self) -> list[str]:
        for number in self._screen.dirty:
            self._shown[number] = self._screen.line(number)
        self._screen.dirty.clear()
        return [*self._shown]

    def lines(self) -> list[str]:
        """All lines, also those above the screen."""
        return [*self._screen.above, *self._display()]


# A row of Pulumi's display: what is done, type, name, status, info.
_ROW = re.compile(r"^ ?[+~\-= ]{0,3} +(?P<tree>[│├└─ ]*)(?P<type>\w+:\w+:\w+)  +(?P<name>\S+)  +(?P<rest>\S.*)$")
_DONE = re.compile(r"^(created|updated|replaced|deleted)[^()]*\(\d+(\.\d\d)?s\)(  +(?P<info>\S.*))?$")
# What a run that went well says nowhere.
_READS_AS_ERROR = re.compile(r"error|fail|unknown|warning|denied|refused|traceback", re.IGNORECASE)


def rows(lines: list[str]) -> dict[tuple[str, str], str]:
    """Type and name -> status and info."""
    return {(found["type"], found["name"]): found["rest"] for line in lines if (found := _ROW.match(line))}


def readable(shown: Terminal) -> dict[tuple[str, str], str]:
    """The rows at the end of an `up` that went well, which a person can read: no row is wrapped, or cut before its status is said; how many
    messages there are can be told; none says what was true only meanwhile; nothing reads as an error."""
    lines = shown.lines()
    text = "\n".join(lines)
    table = rows(lines[: lines.index("Diagnostics:")])
    for (kind, name), rest in table.items():
        found = _DONE.match(rest)
        assert found, (kind, name, rest)
        assert found["info"] is None or re.fullmatch(r"\d+ mess(?:ages?|ag|a)", found["info"]), (kind, name, rest)
        assert "..." not in kind + name
    assert not _READS_AS_ERROR.findall(text), text
    (made,) = (int(found[1]) for line in lines if (found := re.fullmatch(r" +\+ (\d+) created", line)))
    assert len(table) == made, text  # each resource has its row
    return table


def said_meanwhile(shown: Terminal, kind: str) -> set[str]:
    """Status and info that the rows of a type had while the run was at work."""
    return {rest for screen in shown.seen for (one, _), rest in rows(screen).items() if one == kind}
