"""Markdown: tables made from data, their places in a page, and the anchors of a page's headings.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; the text around it is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_TABLE = re.compile(r"(<!-- table: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_HEADING = re.compile(r"^#{1,6} +(.+?) *$|^(```)", re.MULTILINE)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; each cell is Markdown on one line."""
    lines = [head, ["---" for _ in head], *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def with_tables(page: str, tables: Mapping[str, str]) -> str:
    """The page with its tables as `tables` (name -> Markdown) has them.

    :raises KeyError: the page asks for a table that isn't there.
    """
    return _TABLE.sub(lambda match: f"{match[1]}\n{tables[match['name']]}\n{match[3]}", page)


def anchors(page: str) -> list[str]:
    """The anchors of the page's headings, in their order, as GitHub makes them."""
    links: list[str] = []
    inside_code = False
    for match in _HEADING.finditer(page):
        if match[2]:
            inside_code = not inside_code
        elif not inside_code:
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match[1])
            anchor = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            twins = sum(re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", other) is not None for other in links)
            links.append(f"{anchor}-{twins}" if twins else anchor)
    return links


def anchors_of_tables(page: str) -> dict[str, str]:
    """A table's name -> the anchor of the heading that it stands below."""
    return {match["name"]: anchors(page[: match.start()])[-1] for match in _TABLE.finditer(page)}
