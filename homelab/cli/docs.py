"""`homelab docs`: the pages and the examples of this version, which come with the package. At a terminal a page is
drawn; elsewhere it is printed as it lies.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Markdown
from rich.text import Text

from homelab import template
from homelab.show import terminal

_PLACES = ("*", "docs/*", "docs/adr/*", "examples/*", "examples/*/*")


def pages() -> list[Path]:
    """Each page, and what pages link to; what lies higher comes first."""
    root = template.folder()
    files = [file for place in _PLACES for file in sorted(root.glob(place)) if file.is_file()]
    return [file for file in files if file.suffix != ".svg" and file.stem != "__init__"]


def page(place: str) -> Path | None:
    """A page by the end of its path, with or without its suffix; a README also by its folder.

    Of two, the one that lies higher.
    """
    asked = [part for part in Path(place).parts if part != ".."]
    for file in pages():
        ways = [
            file,
            file.with_suffix(""),
            *([file.parent] if file.stem == "README" and file.parent != template.folder() else []),
        ]
        if any(list(way.relative_to(template.folder()).parts[-len(asked) :]) == asked for way in ways):
            return file
    return None


class _Code(CodeBlock):
    """Lines to copy, which aren't folded."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(str(self.text).rstrip(), style="cyan", no_wrap=True, overflow="ignore")


class _Page(Markdown):
    elements: ClassVar = {**Markdown.elements, "fence": _Code, "code_block": _Code}


def section(text: str, anchor: str) -> str:
    """A part of a page, by its heading's anchor; the whole, where it has no such heading."""
    for heading in re.finditer(r"^(##+) (.+)", text, re.MULTILINE):
        if re.sub(r"[^\w -]", "", heading[2].lower()).replace(" ", "-") == anchor:
            return re.split(rf"\n(?=#{{2,{len(heading[1])}}} )", text[heading.start() :])[0]
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(prog="homelab docs", description="Shows a page or an example of this version.")
    parser.add_argument(
        "page", nargs="?", metavar="PAGE", default="docs", help="or PAGE#SECTION (default: all by task)"
    )
    parser.add_argument("--path", action="store_true", help="print where it lies instead")
    arguments = parser.parse_args(argv)
    place, _, anchor = arguments.page.partition("#")
    file = page(place)
    if not file:
        parser.error(f"there is no page {place}: `homelab docs` lists them")
    text, console = section(file.read_text(encoding="utf-8"), anchor), Console(width=terminal.width(100))
    if arguments.path:
        print(file)
    elif console.is_terminal and file.suffix == ".md":
        console.print(_Page(text, hyperlinks=False), crop=False)
    else:
        print(text)
    return 0
