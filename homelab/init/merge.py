"""Changes values in a settings file and keeps its comments, keys and lines.

A parser (PyYAML's composer) tells where each value stands, and only changed values are replaced there. All other bytes
stay. New comments stand where Pulumi keeps them: before a key, or behind it on its line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from homelab.errors import HomelabError
from homelab.settings import stack_file

# The beginning of a new file.
HEAD = """# yaml-language-server: $schema=docs/config.schema.json
# Made by homelab init. Change it as you like: homelab init adds to it.
# docs/settings.md describes every key.
config: {}
"""
# Comments of new keys: the last parts of the path -> the comment on its line, or before it where the line would be too
# long.
_COMMENTS: dict[tuple[str, ...], str] = {
    ("ssh", "hostKey"): "confirmed in homelab init",
    ("ssh", "agent"): "the SSH agent of this machine logs in",
    ("cluster",): "nodes of one cluster restart one after another",
    ("gpus", "*", "use"): "vm: for a VM; lxc, host: stays with the host's driver",
    ("gpus", "*", "address"): "there are several cards with this id",
    ("nvidia", "driver"): "docs/nvidia.md has what works with what",
}
# Comments before new sections.
_SECTIONS: dict[tuple[str, ...], str] = {
    ("homelab:hosts",): "The Proxmox VE nodes, and their cards.",
    ("homelab:vms",): "Cards in VMs.",
    ("homelab:containers",): "Cards in containers, shared by the host's driver.",
    ("homelab:plan",): "Whether a preview reads the host: auto, always, never.",
}
# Of a line of the file: init shows the file indented by two columns.
_COLUMNS = 76
_Path = tuple[str, ...]


def merged(text: str, values: Mapping[str, Any]) -> str:
    """The file with these values under `config:`: mappings are merged, other values replaced where they differ.

    :param text: the existing file; empty: there is none.
    :raises HomelabError: it isn't YAML, or has another value in the place of a mapping.
    """
    text = text if text.strip() else HEAD
    newline = "\r\n" if "\r\n" in text else "\n"
    text = text if text.endswith("\n") else text + newline
    try:
        whole = yaml.compose(text, Loader=stack_file.Loader)
    except yaml.YAMLError as error:
        raise _cannot_be_added_to(getattr(error, "problem", None) or "it isn't valid YAML") from None
    edits = _Edits(text)
    if whole is None:
        edits.put(len(text), len(text), "config:\n" + "".join(_block(values, 2, ())))
    elif not isinstance(whole, yaml.MappingNode):
        raise _cannot_be_added_to("it is no mapping")
    else:
        edits.into(whole, {"config": values}, ())
    made = edits.applied()
    _check(text, values, made)
    return made if newline == "\n" else re.sub(r"\r?\n", newline, made)


def _check(text: str, values: Mapping[str, Any], made: str) -> None:
    """Checks that the new text has the old text's values and the new ones.

    :raises HomelabError: it hasn't, such as with an alias (`*name`), by which one change counts at two places.
    """
    before = stack_file.parsed(text) or {}
    wanted = _together(before, {"config": values})
    try:
        read = stack_file.parsed(made)
    except yaml.YAMLError:
        read = None
    if not _same(wanted, read):
        raise _cannot_be_added_to(
            "a layout in which a value can't be put in at its place alone, such as an alias (*name)"
        )


def _together(old: Any, new: Any) -> Any:
    """The old value merged with the new one, as `merged` does it."""
    if not isinstance(new, Mapping):
        return new
    base = old if isinstance(old, Mapping) and list(old) != ["secure"] else {}
    if not new and old is not None and isinstance(old, Mapping):
        return old
    return {**base, **{key: _together(base.get(key), value) for key, value in new.items()}}


def _same(left: Any, right: Any) -> bool:
    """Whether two values are equal; the order of a list, such as of cards, doesn't count."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(_same(value, right[key]) for key, value in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return sorted(map(str, left)) == sorted(map(str, right))
    return bool(left == right)


def _cannot_be_added_to(found: str) -> HomelabError:
    return HomelabError(
        wanted="a settings file that can be added to",
        found=found,
        why="what is in it must not be lost",
        next="correct the file, or choose another stack with --stack",
    )


@dataclass
class _Edits:
    """Changes of `text`. `edits`: start and end as offsets, and the text in their place."""

    text: str
    edits: list[tuple[int, int, str]] = field(default_factory=list)

    def put(self, start: int, end: int, new: str) -> None:
        self.edits.append((start, end, new))

    def applied(self) -> str:
        text = self.text
        # From the end on, so that offsets stay valid; several edits at one place keep their order.
        for start, end, new in sorted(reversed(self.edits), key=lambda edit: edit[0], reverse=True):
            text = text[:start] + new + text[end:]
        return text

    def into(self, node: yaml.MappingNode, values: Mapping[str, Any], place: _Path) -> None:
        """Puts values into a mapping."""
        existing = {str(key.value): (key, value) for key, value in node.value}
        new = {key: value for key, value in values.items() if key not in existing}
        for key, value in values.items():
            if key in existing:
                self._at(*existing[key], value, (*place, key))
        if not new:
            return
        if node.flow_style:
            last = _end(node.value[-1][1]) if node.value else node.start_mark.index + 1
            parts = ", ".join(f"{_scalar(key)}: {_flow(value)}" for key, value in new.items())
            self.put(last, last, f", {parts}" if node.value else parts)
        else:
            # An alias's value stands where its anchor is, above its key.
            at = self._line_end(max(max(key.end_mark.index, _end(value)) for key, value in node.value))
            self.put(at, at, "".join(_block(new, node.value[0][0].start_mark.column, _inner(place), first=False)))

    def _at(self, key: yaml.Node, node: yaml.Node, value: Any, place: _Path) -> None:
        """Replaces a value."""
        before = _plain(node)
        if before == value:
            return
        if isinstance(value, Mapping):
            if isinstance(node, yaml.MappingNode) and node.value and list(before) != ["secure"]:
                self.into(node, value, place)
            elif before in ({}, None) and key.start_mark.line == node.start_mark.line and not self._inside_flow(key):
                self._opened(key, node, value, place)
            elif before in ({}, None):
                self.put(node.start_mark.index, _end(node), _flow(value))
            else:
                raise _cannot_be_added_to(f"{'.'.join(place)} is no mapping")
        elif isinstance(value, list) and isinstance(node, yaml.SequenceNode) and not node.flow_style:
            self._list(node, value)
        elif not isinstance(node, yaml.CollectionNode) or node.flow_style:
            empty = node.start_mark.index == _end(node)
            self.put(node.start_mark.index, _end(node), (" " if empty else "") + _flow(value))
        else:
            # From behind the colon on, which is on the key's own line.
            self.put(self.text.index(":", key.end_mark.index) + 1, _end(node), f" {_flow(value)}")

    def _opened(self, key: yaml.Node, node: yaml.Node, value: Mapping[str, Any], place: _Path) -> None:
        """Replaces `{}` by a block below its key; a comment behind it stays on its line."""
        before = self.text[: node.start_mark.index]
        self.put(len(before.rstrip(" ")), _end(node), "")
        at = self._line_end(_end(node))
        self.put(at, at, "".join(_block(value, key.start_mark.column + 2, _inner(place))))

    def _list(self, node: yaml.SequenceNode, value: Sequence[Any]) -> None:
        """Changes a list with one item a line: removes the lines of old items, and adds new ones at its end."""
        items = [_plain(item_node) for item_node in node.value]
        for item_node, item in zip(node.value, items, strict=True):
            if item not in value:
                start = self.text.rindex("\n", 0, item_node.start_mark.index) + 1
                self.put(start, self._line_end(_end(item_node)), "")
        at = self._line_end(_end(node.value[-1]))
        dash = " " * node.start_mark.column + "- "
        added = [item for item in value if item not in items]
        if not any(item in value for item in items) and not added:
            self.put(at, at, " " * (node.start_mark.column + 2) + "[]\n")
        self.put(at, at, "".join(f"{dash}{_flow(item)}\n" for item in added))

    def _inside_flow(self, key: yaml.Node) -> bool:
        """Whether a key is in a mapping in braces."""
        line = self.text[self.text.rfind("\n", 0, key.start_mark.index) + 1 : key.start_mark.index]
        return line.strip() not in ("", "-")

    def _line_end(self, at: int) -> int:
        """The offset behind the end of the line."""
        newline = self.text.find("\n", at)
        return len(self.text) if newline < 0 else newline + 1


def _inner(place: _Path) -> _Path:
    """A place below `config:`."""
    return place[1:]


def _end(node: yaml.Node) -> int:
    """The offset where a value ends. A block's end mark stands behind comments that follow it, so its last value
    counts.
    """
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        # A text of several lines ends with its last line that isn't empty.
        whole = str(node.start_mark.buffer or "")[node.start_mark.pointer : node.end_mark.pointer].rstrip("\0")
        return int(node.start_mark.index) + len(whole.rstrip())
    return int(node.end_mark.index)


def _plain(node: yaml.Node) -> Any:
    """A node's value as the program's loader reads it."""
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): _plain(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    constructor = yaml.SafeLoader("")
    try:
        return constructor.construct_object(node)
    finally:
        constructor.dispose()


# -- new text ---------------------------------------------------------------------------------------------------------
def _block(values: Mapping[str, Any], column: int, place: _Path, *, first: bool = True) -> list[str]:
    """Keys and values as lines.

    :param first: whether they begin their mapping.
    """
    lines: list[str] = []
    indent = " " * column
    for key, value in values.items():
        here = (*place, key)
        if section := _SECTIONS.get(here):
            lines += [*([] if first and not lines else ["\n"]), f"{indent}# {section}\n"]
        comment = "".join(f" # {text}" for pattern, text in _COMMENTS.items() if _ends_with(here, pattern))
        if not isinstance(value, Mapping) and len(f"{indent}{key}: {_flow(value)}{comment}") > _COLUMNS:
            lines.append(f"{indent}{comment.lstrip()}\n" if comment else "")
            comment = ""
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{_scalar(key)}:{comment}\n", *_block(value, column + 2, here)]
        else:
            lines.append(f"{indent}{_scalar(key)}: {_flow(value)}{comment}\n")
    return lines


def _ends_with(place: _Path, pattern: _Path) -> bool:
    end = place[-len(pattern) :]
    return len(end) == len(pattern) and all(want in ("*", part) for want, part in zip(pattern, end, strict=True))


def _flow(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_scalar(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return value if _needs_no_quotes(value) else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)


def _needs_no_quotes(text: str) -> bool:
    """Whether every reader of YAML, 1.1 or 1.2, takes the unquoted text for this text."""
    plain = re.fullmatch(r"[A-Za-z~/.](?:[A-Za-z0-9 ._/@!+=~-]|:(?=[A-Za-z]))*", text) and text == text.strip()
    return bool(plain) and isinstance(yaml.safe_load(text), str)
