"""A tree as a Mermaid flowchart, which GitHub, GitLab and many wikis draw from Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from homelab.show.tree import NodeKind, TreeNode
from homelab.text import clean

_SHAPES: dict[NodeKind, tuple[str, str]] = {
    "host": ("[[", "]]"),
    "group": ("([", "])"),
    "card": ("[", "]"),
    "guest": ("(", ")"),
    "setting": ("{{", "}}"),
    "other": (">", "]"),
}
# Readable on a light and on a dark page.
_CLASSES = {
    "new": "stroke:#2da44e,stroke-width:3px",
    "gone": "stroke:#cf222e,stroke-width:2px,stroke-dasharray:5 4",
    "changes": "stroke:#bf8700,stroke-width:3px",
}

_PLAIN = frozenset(" .,:/[]()→…_'-−+~")


def text(trees: Sequence[TreeNode]) -> str:
    """The flowchart, without the fence around it."""
    lines = ["flowchart LR"]
    marked: dict[str, list[str]] = {}
    number = 0

    def add(node: TreeNode, parent: str) -> None:
        nonlocal number
        name = f"n{number}"
        number += 1
        begin, end = _SHAPES[node.kind]
        lines.append(f'  {name}{begin}"{_escaped(node.line)}"{end}')
        if parent:
            lines.append(f"  {parent} {'-.-' if node.mark == 'gone' else '---'} {name}")
        if node.mark in _CLASSES:
            marked.setdefault(node.mark, []).append(name)
        for child in node.children:
            add(child, name)

    for tree in trees:
        add(tree, "")
    for mark, nodes in marked.items():
        lines += [f"  classDef {mark} {_CLASSES[mark]}", f"  class {','.join(nodes)} {mark}"]
    return "\n".join(lines)


def _escaped(line: str) -> str:
    """The line without markup, as the names of hosts and guests are arbitrary text (Mermaid takes `#34;` for a
    character).
    """
    safe = " ".join(clean(line).split())
    # Mermaid takes a text that begins with `- ` for a list.
    safe = f"−{safe[1:]}" if safe.startswith("- ") else safe
    return "".join(
        character if character.isalnum() or character in _PLAIN else f"#{ord(character)};" for character in safe
    )
