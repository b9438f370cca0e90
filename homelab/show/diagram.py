"""Draws the trees of hosts as a diagram: a box for each host, IOMMU group, card and guest, a line from a card to
whoever has it, and what changes in colour. As SVG, or as a page that stands alone; both need nothing from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from io import StringIO

from rich.console import Console
from rich.text import Text

from homelab.show.tree import LEGEND, TreeNode
from homelab.text import clean

# In pixels. A letter of a monospaced font is 0.6 of its size wide; a reader's own font may be a little wider.
_SIZE, _LETTER, _LINE = 13, 8.2, 19
_PAD, _GAP = 14, 16
_WIDTH = 1000
_CARD_X, _CARD_WIDTH = 3 * _PAD, 470
_GUEST_X = _CARD_X + _CARD_WIDTH + 90
_GUEST_WIDTH = _WIDTH - _GUEST_X - 3 * _PAD
_STYLE = f"""
.homelab {{ font: {_SIZE}px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }}
.homelab rect {{ fill: #ffffff; stroke: #57606a; }}
.homelab .host > rect, .homelab .page {{ fill: #f6f8fa; }}
.homelab text {{ fill: #1f2328; }}
.homelab .title {{ font-weight: bold; }}
.homelab .small {{ fill: #57606a; }}
.homelab path {{ fill: none; stroke: #57606a; stroke-width: 2; }}
.homelab .nobody rect {{ stroke-dasharray: 4; }}
.homelab .new rect, .homelab path.new {{ stroke: #1a7f37; stroke-width: 2; }}
.homelab text.new {{ fill: #116329; }}
.homelab .gone rect, .homelab path.gone {{ stroke: #cf222e; stroke-width: 2; stroke-dasharray: 6; }}
.homelab text.gone {{ fill: #a40e26; }}
.homelab .changes rect, .homelab path.changes {{ stroke: #9a6700; stroke-width: 2; }}
.homelab text.changes {{ fill: #7d4e00; }}
@media (prefers-color-scheme: dark) {{
.homelab rect {{ fill: #161b22; stroke: #8b949e; }}
.homelab .host > rect, .homelab .page {{ fill: #0d1117; }}
.homelab text {{ fill: #e6edf3; }}
.homelab .small {{ fill: #9ea7b3; }}
.homelab path {{ stroke: #8b949e; }}
.homelab .new rect, .homelab path.new {{ stroke: #3fb950; }}
.homelab text.new {{ fill: #56d364; }}
.homelab .gone rect, .homelab path.gone {{ stroke: #f85149; }}
.homelab text.gone {{ fill: #ff7b72; }}
.homelab .changes rect, .homelab path.changes {{ stroke: #d29922; }}
.homelab text.changes {{ fill: #e3b341; }}
}}
"""
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 16px; }}
svg {{ display: block; max-width: 100%; height: auto; }}
</style>
</head>
<body>
{svg}</body>
</html>
"""
_WIDEST = Console(file=StringIO(), width=1000)


@dataclass
class _Drawing:
    """What is drawn so far, from the top to `y`."""

    y: float = 0
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, width: float, text: str, names: str) -> None:
        """Lines, folded to a width."""
        columns = int(width / _LETTER)
        for line in Text(clean(text)).wrap(_WIDEST, columns):
            self.y += _LINE
            self.parts.append(
                f'<text x="{x:g}" y="{self.y - 5:g}" class="{names}">{escape(line.plain.rstrip())}</text>'
            )

    def box(self, x: float, width: float, node: TreeNode, names: str) -> float:
        """A box with a node's text and settings, and its height."""
        top = self.y
        inside = _Drawing(top + _PAD / 2)
        inside.text(x + _PAD, width - 2 * _PAD, node.line, f"title {node.mark}")
        for setting in node.children:
            if setting.kind == "setting":
                inside.text(x + _PAD, width - 2 * _PAD, setting.line, f"small {setting.mark}")
        height = inside.y + _PAD / 2 + 3 - top
        self.parts.append(f'<g class="{names} {node.mark}">{_rect(x, top, width, height)}</g>')
        self.parts += inside.parts
        return height


def svg(trees: Sequence[TreeNode], title: str) -> str:
    """The text of a picture's file: it follows the reader's light or dark setting."""
    drawing = _Drawing(_PAD)
    drawing.text(_PAD, _WIDTH - 2 * _PAD, title, "title")
    if any(node.mark != "stays" for tree in trees for node in tree.walk()):
        drawing.text(_PAD, _WIDTH - 2 * _PAD, LEGEND, "small")
    for tree in trees:
        drawing.y += _GAP / 2
        _host(drawing, tree)
    height = drawing.y + _PAD
    head = (
        f'<svg class="homelab" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:g}" '
        f'width="{_WIDTH}" height="{height:g}" role="img" aria-label="{escape(clean(title), quote=True)}">'
    )
    page = f'<rect class="page" width="{_WIDTH}" height="{height:g}" style="stroke: none"/>'
    return "\n".join((head, f"<style>{_STYLE}</style>", page, *drawing.parts, "</svg>\n"))


def html(trees: Sequence[TreeNode], title: str) -> str:
    """The text of a page's file, with the picture in it."""
    return _PAGE.format(title=escape(clean(title)), svg=svg(trees, title))


def _host(drawing: _Drawing, tree: TreeNode) -> None:
    inside = _Drawing(drawing.y + _PAD / 2)
    inside.text(2 * _PAD, _WIDTH - 4 * _PAD, tree.line, "title")
    for node in tree.children:
        if node.kind == "group":
            _group(inside, node)
        else:
            inside.text(2 * _PAD, _WIDTH - 4 * _PAD, node.line, f"small {node.mark}")
    _frame(drawing, inside, _PAD, _WIDTH - 2 * _PAD, "host")


def _group(drawing: _Drawing, group: TreeNode) -> None:
    drawing.y += _GAP / 2
    inside = _Drawing(drawing.y + _PAD / 2)
    inside.text(_CARD_X, _WIDTH - 2 * _CARD_X, group.line, "small")
    for node in group.children:
        if node.kind == "card":
            _card(inside, node)
        else:
            inside.y += 4
            inside.text(_CARD_X, _WIDTH - 2 * _CARD_X, f"also in this group: {node.line}", "small")
    _frame(drawing, inside, 2 * _PAD, _WIDTH - 4 * _PAD, "group")


def _card(drawing: _Drawing, card: TreeNode) -> None:
    """The card on the left; on the right, one below the other, who has it."""
    drawing.y += _GAP / 2
    top = drawing.y
    bottom = top + drawing.box(_CARD_X, _CARD_WIDTH, card, "card")
    left, start = _CARD_X + _CARD_WIDTH, top + _LINE
    middle = (left + _GUEST_X) / 2
    for holder in card.children:
        if holder.kind == "setting":
            continue
        y = drawing.y + _LINE
        names = "guest" if holder.kind == "guest" else "nobody"
        drawing.y += drawing.box(_GUEST_X, _GUEST_WIDTH, holder, names) + _GAP / 2
        if holder.kind == "guest":
            mark = "gone" if card.mark == "gone" else holder.mark
            curve = f"M {left:g} {start:g} C {middle:g} {start:g} {middle:g} {y:g} {_GUEST_X:g} {y:g}"
            drawing.parts.append(f'<path class="{mark}" d="{curve}"/>')
    drawing.y = max(bottom, drawing.y)


def _frame(drawing: _Drawing, inside: _Drawing, x: float, width: float, name: str) -> None:
    """A box around what is drawn already."""
    inside.y += _PAD
    drawing.parts += [f'<g class="{name}">{_rect(x, drawing.y, width, inside.y - drawing.y)}</g>', *inside.parts]
    drawing.y = inside.y


def _rect(x: float, y: float, width: float, height: float) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"/>'
