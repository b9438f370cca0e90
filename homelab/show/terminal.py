"""Draws trees for the terminal: by rich, which knows its width and colours."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from homelab.show.tree import Mark, TreeNode
from homelab.text import clean

_STYLES: dict[Mark, str] = {"stays": "", "new": "bold green", "gone": "red", "changes": "yellow"}
_KINDS = {"host": "bold", "group": "cyan", "setting": "dim", "other": "dim"}
# For output to a file or a program, which don't break lines.
WIDTH_OF_A_FILE = 160


def _console(width: int | None, colours: bool | None) -> Console:
    if width is None and not sys.stdout.isatty():
        width = WIDTH_OF_A_FILE
    console = Console(width=width, force_terminal=colours, no_color=colours is False or None, highlight=False)
    if console.legacy_windows:  # a console that shows escape sequences as they are
        return Console(width=width, color_system=None, highlight=False)
    return console


def width(most: int) -> int:
    """The width of the terminal, in columns; `most`, where it is wider, or the output is no terminal."""
    return min(most, shutil.get_terminal_size().columns) if sys.stdout.isatty() else most


def _drawn(node: TreeNode) -> Text:
    return Text(clean(node.line), style=_STYLES[node.mark] or _KINDS.get(node.kind, ""))


def _tree(node: TreeNode) -> Tree:
    tree = Tree(_drawn(node), guide_style="dim")

    def add(parent: Tree, children: Sequence[TreeNode]) -> None:
        for child in children:
            add(parent.add(_drawn(child)), child.children)

    add(tree, node.children)
    return tree


def text(trees: Sequence[TreeNode], *, width: int | None = None, colours: bool | None = None) -> str:
    """Lines for a terminal.

    :param width: in columns; None: as wide as this terminal.
    :param colours: None: if the output is a terminal and NO_COLOR isn't set.
    """
    console = _console(width, colours)
    with console.capture() as captured:
        for tree in trees:
            console.print(_tree(tree))
    return captured.get()
