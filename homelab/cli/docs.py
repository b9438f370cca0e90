"""`homelab docs`: the pages and the examples of this version, which come with the package; without a name: which there
are. At a terminal a page is drawn; elsewhere it is printed as it lies.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from homelab import template
from homelab.errors import Mistake
from homelab.show import terminal
from homelab.text import clean

_PAGES = ("README.md", "CHANGELOG.md", "docs/*.md", "docs/*/README.md", "examples/**/README.md", "examples/s*/*.yaml")
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def pages() -> dict[str, Path]:
    """Each page by its name: that of its file without the end, of a README that of its folder."""
    root = template.folder()
    files = [file for pattern in _PAGES for file in sorted(root.glob(pattern))]
    return {file.parent.name if file.stem == "README" and file.parent != root else file.stem: file for file in files}


def first_sentence(file: Path) -> str:
    """What a page says first, without its links."""
    text = _FENCED.sub("", file.read_text(encoding="utf-8"))
    comment = "# (?!yaml-)" if file.suffix == ".yaml" else ""
    said = re.search(rf"^{comment}(?:- )?([\w\[`*].*?)(?=\n\n|\n- |\nconfig|\Z)", text, re.MULTILINE | re.DOTALL)
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)|\n#|\*", r"\1", said[1] if said else "")
    return re.split(r"(?<=[.…])\s", plain)[0].replace("\n", " ")


def section(text: str, anchor: str) -> str:
    """A part of a page, by its heading's anchor; the whole, where it has no such heading."""
    for heading in re.finditer(r"^(##+) (.+)", text, re.MULTILINE):
        if re.sub(r"[^\w -]", "", heading[2].lower()).replace(" ", "-") == anchor:
            return re.split(rf"\n(?=#{{2,{len(heading[1])}}} )", text[heading.start() :])[0]
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    :raises Mistake: there is no such page.
    """
    parser = argparse.ArgumentParser(prog="homelab docs", description="Shows a page or an example of this version.")
    parser.add_argument("page", nargs="?", metavar="PAGE", help="its name, or PAGE#SECTION (default: which there are)")
    parser.add_argument("--path", action="store_true", help="print where it lies; without PAGE: where all of them lie")
    arguments, known = parser.parse_args(argv), pages()
    name, _, anchor = (arguments.page or "").partition("#")
    if name and name not in known:
        raise Mistake(f"There is no page {name}. There are: {', '.join(known)}.")
    console = Console(width=terminal.width(100), markup=False, highlight=False)
    if arguments.path:
        print(known.get(name, template.folder()))
    elif not name:
        table = Table.grid(padding=(0, 2))
        for page, file in known.items():
            table.add_row(page, clean(first_sentence(file)))
        console.print(table, "`homelab docs PAGE` shows one.")
    else:
        text = section(known[name].read_text(encoding="utf-8"), anchor)
        is_drawn = console.is_terminal and known[name].suffix == ".md"
        console.print(Markdown(text, hyperlinks=False)) if is_drawn else print(text)
    return 0
