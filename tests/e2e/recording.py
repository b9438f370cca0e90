"""The first hour and other recordings: what of a terminal's text stands there, and whether it is still what the program prints."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from lab import Lab
from tests.conftest import PROJECT
from tests.e2e import terminal

#: Host -> what shows its terminal: a page, or data.
PAGES = {
    "rtx5090": PROJECT / "docs" / "first-hour.md",
    "phoenix": PROJECT / "tests" / "e2e" / "recorded" / "phoenix.txt",
    "history": PROJECT / "tests" / "e2e" / "recorded" / "history.txt",
    "windows": PROJECT / "tests" / "windows" / "recorded.txt",  # by tests/windows/first_hour.py
}
#: README's picture, of the first page.
PICTURE = PROJECT / "docs" / "first-hour.svg"
ADDRESS = "192.168.0.202"
# What differs from run to run: keys and fingerprints, times.
_OWN = [
    (re.compile(r"SHA256:[A-Za-z0-9+/]{43}"), "SHA256:…"),
    (re.compile(r"AAAA[A-Za-z0-9+/]{60,}"), "AAAA…"),
    (re.compile(r"\d+(\.\d+)?m?s\b"), "…s"),
]
# Of a step that takes longer than some seconds (tools/log.py).
_WHERE_IT_IS = re.compile(r"(: |, )\d+ s(, at most \d+.*)?(: |$)")


def shortened(lines: Sequence[str]) -> Iterator[str]:
    """Without the outputs, which are for other programs."""
    in_outputs = False
    for line in lines:
        if line == "Outputs:":
            in_outputs = True
            yield from (line, "    ...")
        elif re.match(r"\w+:", line):  # a line that was too long goes on at its beginning, too
            in_outputs = False
            yield ""
        if not in_outputs:
            yield line


def as_on_a_host(lines: Sequence[str], folder: Path, lab: Lab) -> str:
    """Without what is a lab's alone: its folder, address and port; without empty lines at both ends."""
    connection = lab.connection
    text = "\n".join(line.rstrip() for line in lines).strip("\n")
    text = _as_at_home(text, folder)
    text = text.replace(connection["host"], ADDRESS)
    text = re.sub(rf"^ *port: {connection['port']}\n", "", text, flags=re.MULTILINE)
    text = re.sub(rf"(, port |:){connection['port']}\b", "", text)
    return re.sub(r"\n{3,}", "\n\n", text)


def _as_at_home(text: str, folder: Path) -> str:
    return text.replace(str(folder.parent), "~")


def without_rows(lines: Sequence[str]) -> Iterator[str]:
    """Without the rows of resources, of which there may be many, and without what Pulumi says of a stack that has none left."""
    for line in lines:
        if line.startswith("The resources in the stack have been deleted"):
            return
        if re.match(r"     Type +Name ", line):
            yield "     ..."
        elif not re.match(r" [+~\- ] +[│├└─ ]*\w+:\w+:\w+ ", line):
            yield line


def picture(page: str) -> str:
    """A page's first command as an SVG, for README: without fonts from elsewhere."""
    (shown,) = re.findall(r"^```\n(\$.*?)^```", page, flags=re.MULTILINE | re.DOTALL)[:1]
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(Text(shown.rstrip("\n")))
    form = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    return console.export_svg(title="homelab init", code_format=form, unique_id="init") + "\n"


# -- is it still so? -----------------------------------------------------------------------------------------------
def recorded(scenario: str, command: str) -> list[str]:
    """What the page shows of a command (`homelab init`, `pulumi up`, `homelab show`) on a host."""
    text = PAGES[scenario].read_text(encoding="utf-8")
    (shown,) = re.findall(rf"^```\n(?:\$|PS>) {command}\b[^\n]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return str(shown).splitlines()


def _essence(lines: Sequence[str], folder: Path | None = None) -> str:
    """Wherever lines are broken: a path's length decides that, too."""
    # A slow machine is waited for, which is said in two lines; a terminal may have the second one indented.
    waits = ("Waiting for ", "Ctrl-C ends it")
    text = re.sub(r"\s+", "", "\n".join(line for line in lines if not line.strip().startswith(waits)))
    text = _as_at_home(text, folder) if folder else text
    for own, instead in _OWN:
        text = own.sub(instead, text)
    return text


def _said(lines: Sequence[str]) -> set[str]:
    """Each message; they stand in the order in which they came. Where a slow step is says nothing of the program."""
    between = (
        "\n".join(line for line in lines if not _WHERE_IT_IS.search(line))
        .partition("\nDiagnostics:\n")[2]
        .partition("\nOutputs:")[0]
    )
    return {_essence([message]) for message in re.split(r"\n(?=    \S)|\n\n", between)}


def hold_init(scenario: str, shown: Sequence[str], folder: Path, lab: Lab) -> None:
    """`homelab init` says what the page has, up to what it has done last."""
    expected = _essence(recorded(scenario, "homelab init")).partition("Goon?")[0]
    found = _essence(as_on_a_host(shown, folder, lab).splitlines(), folder)
    assert found.startswith(expected), (
        f"record it anew: python -m tests.e2e.first_hour (from Windows: tests.windows.first_hour)\n{expected}\n{found}"
    )


def hold_up(scenario: str, shown: Sequence[str]) -> None:
    """`pulumi up` has the rows and the messages that the page has, with the result."""
    was, now = recorded(scenario, "pulumi up"), list(shortened(shown))
    rows = (terminal.rows(was).keys(), terminal.rows(now).keys())
    sets: list[tuple[Set[object], Set[object]]] = [(_said(was), _said(now))]
    sets += [rows] if rows[0] else []  # a page may leave them out
    for expected, found in sets:
        assert found == expected, (
            f"record it anew: python -m tests.e2e.first_hour (from Windows: tests.windows.first_hour): {[*(expected ^ found)]}"
        )


def hold_show(scenario: str, shown: Sequence[str], folder: Path, lab: Lab) -> None:
    """`homelab show` draws what the page has."""
    expected = _essence(recorded(scenario, "homelab show"))
    assert _essence(as_on_a_host(shown, folder, lab).splitlines()) == expected, (
        "record it anew: python -m tests.e2e.first_hour (from Windows: tests.windows.first_hour)"
    )
