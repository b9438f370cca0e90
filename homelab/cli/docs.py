"""`homelab docs`: the pages and the examples of this version, which come with the package; without a name: which there
are. At a terminal a page is drawn, by the pager where there is one; elsewhere it is printed as it lies.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from homelab import template
from homelab.errors import Mistake
from homelab.show import terminal
from homelab.text import clean

WIDTH = 100
_PAGES = ("README.md", "CHANGELOG.md", "docs/*.md", "docs/*/README.md", "examples/**/README.md", "examples/*/*.yaml")
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def pages() -> dict[str, Path]:
    """Each page by its name: that of its file without the end, of a README that of its folder."""
    root = template.folder()
    files = [file for pattern in _PAGES for file in sorted(root.glob(pattern)) if not file.stem.startswith("Pulumi")]
    return {file.parent.name if file.stem == "README" and file.parent != root else file.stem: file for file in files}


def first_sentence(file: Path) -> str:
    """What a page says first, without its links."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".yaml":
        text = "\n".join(re.findall(r"^# (?!yaml-)(.+)", text, re.MULTILINE))
    said = re.search(r"^(?:- )?[\w\[`*].*?(?=\n\n|\n- |\Z)", _FENCED.sub("", text), re.MULTILINE | re.DOTALL)
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", " ".join(said[0].split()) if said else "")
    return re.split(r"(?<=[.…]) ", plain.replace("*", "").removeprefix("- "))[0]


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
    arguments = parser.parse_args(argv)
    known = pages()
    name, _, anchor = (arguments.page or "").partition("#")
    if name and name not in known:
        raise Mistake(f"There is no page {name}. There are: {', '.join(known)}.")
    if arguments.path:
        print(known.get(name, template.folder()))
    elif not name:
        room = max(map(len, known)) + 2
        for page, file in known.items():
            line = f"{page:<{room}}{clean(first_sentence(file))}"
            width = terminal.width(WIDTH)
            print(textwrap.fill(line, width, subsequent_indent=" " * room, break_on_hyphens=False))
        print("`homelab docs PAGE` shows one.")
    else:
        text = section(known[name].read_text(encoding="utf-8"), anchor)
        if sys.stdout.isatty() and known[name].suffix == ".md":
            _draw(text)
        else:
            print(text)
    return 0


def _draw(text: str) -> None:
    os.environ.setdefault("LESS", "FRX")  # as git has it: colours, and no wait at the end of a short one
    console = Console(width=terminal.width(WIDTH))
    with console.pager(styles=True) if shutil.which("less") else contextlib.nullcontext():
        console.print(Markdown(text, hyperlinks=False))
