"""`homelab docs`: the pages and the examples of this version, which come with the package. At a terminal a page is
drawn; elsewhere it is printed as it lies.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from homelab import template
from homelab.show import terminal

_PLACES = ("*", "docs/*", "docs/adr/*", "examples/*", "examples/*/*")


def name_of(place: Path) -> str:
    """What a page is called by: its file without the end; a README by its folder."""
    return place.parent.name if place.stem == "README" and place.parent.name.strip(".") else place.stem


def pages() -> dict[str, Path]:
    """Each page, and what pages link to, by its name."""
    root = template.folder()
    files = [file for place in _PLACES for file in sorted(root.glob(place)) if file.suffix != ".svg" and file.is_file()]
    return {name_of(file.relative_to(root)): file for file in files}


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
    file = pages().get(name_of(Path(place)))
    if not file:
        parser.error(f"there is no page {place}: `homelab docs` lists them")
    text, console = section(file.read_text(encoding="utf-8"), anchor), Console(width=terminal.width(100))
    if arguments.path:
        print(file)
    elif console.is_terminal and file.suffix == ".md":
        console.print(Markdown(text, hyperlinks=False))
    else:
        print(text)
    return 0
