"""Docstrings have one form (CONTRIBUTING.md, Style). What has another one is named with its file and line."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator

import pytest

from tests.conftest import PROJECT

# Where a function's docstring has fields, and where it has Google's sections.
FIELDS = ("__main__.py", "bench", "components", "engine", "examples", "homelab", "provider")
SECTIONS = ("lab",)

_FIELD = re.compile(r":(param|returns|raises)(?: ([\w.]+))?: +(?=\S)")
_LIKE_A_FIELD = re.compile(r"(?<!\S):(?:param|returns?|raises?|args?|type|rtype)\b[^:\n]*:")
_LIKE_A_SECTION = re.compile(r"^ *(?:Args|Arguments|Returns|Raises|Yields|Attributes):$", re.MULTILINE)
_LIKE_A_SENTENCE = re.compile(r"\bRaises (?:as\b|`?(?:\w+\.)*[A-Z]\w*)|\bReturns\b|; returns (?!when)|\bErrors as\b")
# `name`: what it is; `one`, `other`: what they are; `name` as of another function.
_INLINE = re.compile(r"((?:`\w+`(?:,| and|/) ?)*`\w+`)(?: \([^)]*\))?(?::(?=\s)| as of | is (?:True|False)\b)")

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = ast.Module | ast.ClassDef | Function


def _docstrings(tree: ast.Module) -> Iterator[tuple[ast.AST, int, str]]:
    """Of a module, a class or a function, and what stands below a field or a constant: what it is about, its line, its text."""
    for node in ast.walk(tree):
        if isinstance(node, Documented):
            about: ast.AST = node
            for one in node.body:
                if (
                    isinstance(one, ast.Expr)
                    and isinstance(one.value, ast.Constant)
                    and isinstance(one.value.value, str)
                ):
                    yield about, one.value.lineno, one.value.value
                about = one


def _parameters(function: Function) -> set[str]:
    taken = function.args
    every = [*taken.posonlyargs, *taken.args, taken.vararg, *taken.kwonlyargs, taken.kwarg]
    return {one.arg for one in every if one} - {"self", "cls"}


def _in_running_text(text: str, parameters: set[str]) -> Iterator[str]:
    yield from (f"{found[0]} has a line of its own" for found in _LIKE_A_FIELD.finditer(text))
    yield from (f"'{found[0]}' is said by a field" for found in _LIKE_A_SENTENCE.finditer(text))
    for found in _INLINE.finditer(text):
        yield from (f"`{one}` is a :param" for one in re.findall(r"\w+", found[1]) if one in parameters)


def _of_fields(text: str, parameters: set[str]) -> Iterator[str]:
    """A text, a blank line, and then nothing but fields: what is taken, given, raised."""
    lines = text.splitlines()
    begin = next((at for at, line in enumerate(lines) if _LIKE_A_FIELD.match(line)), len(lines))
    yield from _in_running_text("\n".join(lines[:begin]), parameters)
    if 0 < begin < len(lines) and lines[begin - 1]:
        yield "a blank line comes before the first field"
    kinds, named = [], []
    for line in lines[begin:]:
        field = _FIELD.match(line)
        if field:
            kinds.append(field[1])
            named += [field[2]] if field[1] == "param" else []
        elif not line.startswith("    "):
            yield f"'{line}' is no field, and no field's next line"
        yield from _in_running_text(line[field.end() :] if field else line, parameters)
    if kinds != sorted(kinds, key=["param", "returns", "raises"].index):
        yield "the order is param, returns, raises"
    yield from (f"there is no parameter {name}" for name in named if name not in parameters)
    yield from (f"{name} has two fields" for name in set(named) if named.count(name) > 1)


def faults(about: ast.AST, docstring: str, *, fields: bool) -> Iterator[str]:
    """What of a docstring has another form.

    :param about: what has it.
    :param fields: does a function's have fields there? Else it has sections.
    """
    text = inspect.cleandoc(docstring)
    if "``" in text:
        yield "backticks are single"
    if fields:
        yield from (f"{found[0].strip()} is a section" for found in _LIKE_A_SECTION.finditer(text))
    if fields and isinstance(about, Function):
        yield from _of_fields(text, _parameters(about))
        return
    yield from (f"{found[0]} is a function's" for found in _LIKE_A_FIELD.finditer(text))
    if fields:
        yield from (f"'{found[0]}' is said by a function's field" for found in _LIKE_A_SENTENCE.finditer(text))


@pytest.mark.parametrize("place", [*FIELDS, *SECTIONS])
def test_docstrings_have_one_form(place: str) -> None:
    found = []
    for path in [PROJECT / place] if place.endswith(".py") else sorted((PROJECT / place).rglob("*.py")):
        for about, line, text in _docstrings(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(PROJECT).as_posix()}:{line}"
            found += [f"{where}: {fault}" for fault in faults(about, text, fields=place in FIELDS)]
    assert found == []
