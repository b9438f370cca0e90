"""The commands that the program's messages advise, as they stand in its source between backticks; and how a message's are run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parent.parent
#: What speaks to the owner of a host; lab/engine/ is about the PC that the program runs on.
SPEAKING = ("homelab", "components", "remote_scripts", ".")
#: What writes pages of docs/.
WRITING = ("markdown.py", "document.py")
#: Which test shows each command.
REGISTER = PROJECT / "tests/advice.yaml"

_FILLED_IN_BY_BASH = re.compile(r"\$\{[^}]*\}|(?<!\\)\$\([^)]*\)|(?<!\\)\$\w+")
# Programs of this machine, which know nothing of the lab's root.
_WITHOUT_ROOT = re.compile(r"^(?:echo|rm|chmod|grep|cat|openssl|ssh-keygen)\b")
_PATH = re.compile(r"(?<![\w$./])/(?=(?:boot|dev|etc|proc|root|run|sys|tmp|usr|var)/)")


def advised(message: str) -> list[str]:
    """What stands between backticks in a message."""
    return re.findall(r"`([^`]*)`", message)


def is_made_of(template: str, command: str) -> bool:
    """Is the command the template, with something for each ``{}``?"""
    return re.fullmatch(".+".join(map(re.escape, template.split("{}"))), command) is not None


def on_the_lab(command: str) -> str:
    """The command as it is run on a lab, where paths of this machine's own programs begin with the lab's root."""
    return _PATH.sub("$HOMELAB_ROOT/", command) if _WITHOUT_ROOT.match(command) else command


def found_in_source() -> set[tuple[str, str]]:
    """Every text between backticks in what the program says: file, and text with ``{}`` for what is filled in."""
    return {
        (path.relative_to(PROJECT).as_posix(), said)
        for path in _files()
        for text in _texts(path)
        for said in advised(text)
    }


def _files() -> Iterator[Path]:
    for folder in SPEAKING:
        below = PROJECT.glob("*.py") if folder == "." else (PROJECT / folder).rglob("*")
        yield from (
            path
            for path in below
            if path.suffix in (".py", ".sh", ".yaml") and path.name not in WRITING and path.is_file()
        )


def _texts(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return _of_python(ast.parse(text))
    return _of_bash(text) if path.suffix == ".sh" else _of_data(yaml.safe_load(text))


def _of_python(tree: ast.Module) -> Iterator[str]:
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            # What is filled in may hold a text of its own.
            waiting += [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
        else:
            waiting += ast.iter_child_nodes(node)


def _of_bash(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if not line.lstrip().startswith("#"):
            yield _FILLED_IN_BY_BASH.sub("{}", re.sub(r"\s# .*", "", line)).replace("\\`", "`").replace("\\$", "$")


def _of_data(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict | list):
        for one in data.values() if isinstance(data, dict) else data:
            yield from _of_data(one)
