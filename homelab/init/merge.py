"""A settings file with other values, and with every comment, key and line that it had.

The file isn't written anew from what a parser has understood: the parser (PyYAML's composer) says where each value stands, and only what
changes is put in there. All other bytes stay. What Pulumi does with comments decides where new ones go: it keeps one that stands before a key,
or behind it on its line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from homelab.errors import HomelabError

# A file that is new begins so.
HEAD = """# yaml-language-server: $schema=docs/config.schema.json
# Made by homelab init. Change it as you like: homelab init adds to it.
# docs/settings.md describes every key.
config: {}
"""
# What is said of a key where it is new: the last parts of its path -> the comment on its line, or before it where that would be too long.
_COMMENTS: dict[tuple[str, ...], str] = {
    ("ssh", "hostKey"): "confirmed in homelab init",
    ("ssh", "agent"): "the SSH agent of this machine logs in",
    ("api", "fingerprint"): "of the API's certificate, read over SSH",
    ("cluster",): "nodes of one cluster restart one after another",
    ("gpus", "*", "use"): "vm: for a VM; lxc, host: stays with the host's driver",
    ("gpus", "*", "address"): "there are several cards with this id",
    ("nvidia", "driver"): "docs/nvidia.md has what works with what",
}
# What is said before it.
_SECTIONS: dict[tuple[str, ...], str] = {
    ("homelab:hosts",): "The Proxmox VE nodes, and their cards.",
    ("homelab:vms",): "Cards in VMs.",
    ("homelab:containers",): "Cards in containers, shared by the host's driver.",
    ("homelab:plan",): "Whether a preview reads the host: auto, always, never.",
}
# A terminal shows the file, two columns to the right.
_COLUMNS = 76
_Path = tuple[str, ...]


def merged(text: str, values: Mapping[str, Any]) -> str:
    """The file with these values under `config:`; mappings are gone into, all else is replaced where it differs.

    :param text: the file as it is; empty: there is none.
    :raises HomelabError: it isn't YAML, or has something else where a mapping is to be.
    """
    text = text if text.strip() else HEAD
    newline = "\r\n" if "\r\n" in text else "\n"
    text = text if text.endswith("\n") else text + newline
    try:
        whole = yaml.compose(text, Loader=yaml.SafeLoader)
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
    """Does the new text say what the old one said, and the values?

    :raises HomelabError: it doesn't. An alias (`*name`) is such a case: what is put in at one place would count at two.
    """
    before = yaml.safe_load(text) or {}
    wanted = _together(before, {"config": values})
    try:
        found = yaml.safe_load(made)
    except yaml.YAMLError:
        found = None
    if not _same(wanted, found):
        raise _cannot_be_added_to(
            "a layout in which a value can't be put in at its place alone, such as an alias (*name)"
        )


def _together(old: Any, new: Any) -> Any:
    """As `merged` puts values in: into mappings, else in place of what is there."""
    if not isinstance(new, Mapping):
        return new
    base = old if isinstance(old, Mapping) and list(old) != ["secure"] else {}
    if not new and old is not None and isinstance(old, Mapping):
        return old
    return {**base, **{key: _together(base.get(key), value) for key, value in new.items()}}


def _same(one: Any, other: Any) -> bool:
    """Lists of cards are the same in any order."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return sorted(map(str, one)) == sorted(map(str, other))
    return bool(one == other)


def _cannot_be_added_to(found: str) -> HomelabError:
    return HomelabError(
        wanted="a settings file that can be added to",
        found=found,
        why="what is in it must not be lost",
        next="correct the file, or choose another stack with --stack",
    )


@dataclass
class _Edits:
    """What is put in where, as offsets in `text`: (from, to, in its place)."""

    text: str
    found: list[tuple[int, int, str]] = field(default_factory=list)

    def put(self, start: int, end: int, new: str) -> None:
        self.found.append((start, end, new))

    def applied(self) -> str:
        text = self.text
        # From the end on, so that offsets hold; of several at one place, the first one stands first.
        for start, end, new in sorted(reversed(self.found), key=lambda edit: edit[0], reverse=True):
            text = text[:start] + new + text[end:]
        return text

    def into(self, node: yaml.MappingNode, values: Mapping[str, Any], place: _Path) -> None:
        """The values put into a mapping."""
        there = {str(key.value): (key, value) for key, value in node.value}
        new = {key: value for key, value in values.items() if key not in there}
        for key, value in values.items():
            if key in there:
                self._at(*there[key], value, (*place, key))
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
        """A value in place of the one that is there."""
        there = _plain(node)
        if there == value:
            return
        if isinstance(value, Mapping):
            if isinstance(node, yaml.MappingNode) and node.value and list(there) != ["secure"]:
                self.into(node, value, place)
            elif there in ({}, None) and key.start_mark.line == node.start_mark.line and not self._inside_flow(key):
                self._opened(key, node, value, place)
            elif there in ({}, None):
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
        """`{}` becomes a block below its key; a comment behind it stays on its line."""
        before = self.text[: node.start_mark.index]
        self.put(len(before.rstrip(" ")), _end(node), "")
        at = self._line_end(_end(node))
        self.put(at, at, "".join(_block(value, key.start_mark.column + 2, _inner(place))))

    def _list(self, node: yaml.SequenceNode, value: Sequence[Any]) -> None:
        """Items of a list of lines: those that are gone, without their lines; those that are new, at its end."""
        have = [_plain(item) for item in node.value]
        for item, known in zip(node.value, have, strict=True):
            if known not in value:
                start = self.text.rindex("\n", 0, item.start_mark.index) + 1
                self.put(start, self._line_end(_end(item)), "")
        at = self._line_end(_end(node.value[-1]))
        dash = " " * node.start_mark.column + "- "
        added = [one for one in value if one not in have]
        if not any(known in value for known in have) and not added:
            self.put(at, at, " " * (node.start_mark.column + 2) + "[]\n")
        self.put(at, at, "".join(f"{dash}{_flow(one)}\n" for one in added))

    def _inside_flow(self, key: yaml.Node) -> bool:
        """Is a key part of a mapping in braces?"""
        line = self.text[self.text.rfind("\n", 0, key.start_mark.index) + 1 : key.start_mark.index]
        return line.strip() not in ("", "-")

    def _line_end(self, at: int) -> int:
        """Behind the end of the line, and of a comment on it."""
        found = self.text.find("\n", at)
        return len(self.text) if found < 0 else found + 1


def _inner(place: _Path) -> _Path:
    """A place below `config:`."""
    return place[1:]


def _end(node: yaml.Node) -> int:
    """Where a value ends: a block's end mark is where the next thing begins, behind comments that aren't its own."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        # A text of several lines: its last line with something on it.
        whole = str(node.start_mark.buffer or "")[node.start_mark.pointer : node.end_mark.pointer].rstrip("\0")
        return int(node.start_mark.index) + len(whole.rstrip())
    return int(node.end_mark.index)


def _plain(node: yaml.Node) -> Any:
    """A node as the program's loader reads it."""
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): _plain(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(one) for one in node.value]
    constructor = yaml.SafeLoader("")
    try:
        return constructor.construct_object(node)
    finally:
        constructor.dispose()


# -- new text ---------------------------------------------------------------------------------------------------------
def _block(values: Mapping[str, Any], column: int, place: _Path, *, first: bool = True) -> list[str]:
    """Keys and values as lines.

    :param first: does nothing stand before them in their mapping?
    """
    lines: list[str] = []
    indent = " " * column
    for key, value in values.items():
        here = (*place, key)
        if said := _SECTIONS.get(here):
            lines += [*([] if first and not lines else ["\n"]), f"{indent}# {said}\n"]
        comment = "".join(f" # {said}" for pattern, said in _COMMENTS.items() if _ends_with(here, pattern))
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
        return "{" + ", ".join(f"{_scalar(key)}: {_flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return value if _needs_no_quotes(value) else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)


def _needs_no_quotes(text: str) -> bool:
    """Does every reader of YAML, 1.1 or 1.2, and a person, take the text for what it is?"""
    plain = re.fullmatch(r"[A-Za-z~/.](?:[A-Za-z0-9 ._/@!+=~-]|:(?=[A-Za-z]))*", text) and text == text.strip()
    return bool(plain) and isinstance(yaml.safe_load(text), str)
