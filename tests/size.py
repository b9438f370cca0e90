"""The ratchet of `make lint`: how much code, text and how many exceptions from rules there are. No number may get worse than its limit in size.yaml
by more than 1 %; those of FREE may grow.

python -m tests.size: what a change costs, and 1 where a number is that much worse. --lower: limits become today's numbers where these are better.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from docs.tables.settings import MODELS
from homelab.resources.base import declared

PROJECT = Path(__file__).resolve().parents[1]
LIMITS = PROJECT / "tests" / "size.yaml"

#: An area's name -> how the paths of its files begin; a file belongs to the first. Of the tests, test functions don't count: a good test is nothing to save.
AREAS = {
    "agent": ("remote_scripts/",),
    "program": ("homelab/", "components/", "provider/", "__main__.py"),
    "engine": ("lab/engine/",),
    "lab": ("lab/",),
    "documents": ("docs/",),
    "bench": ("tests/bench/",),
    "test helpers": ("tests/",),
}
#: Comments that switch a rule off.
EXCEPTIONS = ("fmt: skip", "fmt: off", "noqa", "ruff: noqa", "type: ignore", "mypy: ")
#: Numbers that may not fall; all others may not rise.
AT_LEAST = frozenset({"ruff: rules", "mypy: strict"})
#: Numbers that are printed alone: a new setting, and what documents say of it, are nothing to save.
FREE = frozenset({"settings: keys", "documents: words"})


@dataclass(frozen=True)
class Size:
    """`lines`: all of them; `code`: without blank lines, comments and docstrings; `statements`: Python's, elsewhere as many as `code`."""

    lines: int = 0
    code: int = 0
    statements: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(self.lines + other.lines, self.code + other.code, self.statements + other.statements)


def _code(text: str) -> set[int]:
    return {number for number, line in enumerate(text.split("\n"), 1) if line.strip() and line.lstrip()[0] != "#"}


def of_script(text: str) -> Size:
    """The size of sh or Perl."""
    code = len(_code(text))
    return Size(text.count("\n"), code, code)


def of_python(text: str, *, with_tests: bool = True) -> Size:
    """The size of a Python file.

    :param with_tests: also test functions count.
    :raises SyntaxError: it isn't Python.
    """
    code, tests, docstrings, statements = _code(text), set[int](), set[int](), 0
    todo: list[ast.AST] = [ast.parse(text)]
    while todo:
        node = todo.pop()
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if (
                name.startswith("test_") and not with_tests
            ):
                tests.update(range(min(part.lineno for part in (node, *node.decorator_list)), _end(node)))
                continue
            case ast.Expr(value=ast.Constant(value=str())):
                docstrings.update(range(node.lineno, _end(node)))
                statements += 1
                continue
            case ast.Constant(value=str() | bytes()) | ast.JoinedStr():  # its blank lines are code
                code.update(range(node.lineno, _end(node)))
        statements += isinstance(node, ast.stmt)
        todo += ast.iter_child_nodes(node)
    return Size(text.count("\n") - len(tests), len(code - tests - docstrings), statements)


def _end(node: ast.expr | ast.stmt) -> int:
    return (node.end_lineno or node.lineno) + 1


def _files() -> dict[str, str]:
    """The text of each file that git knows, by its path."""
    command = ["git", "ls-files", "-z", ":!tests/size.yaml"]
    listed = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    wanted = re.findall(r"[^\0]+\.(?:py|sh|pl|ya?ml|go|md)(?=\0)", listed)
    return {name: (PROJECT / name).read_text(encoding="utf-8") for name in wanted if (PROJECT / name).is_file()}


def areas(files: dict[str, str]) -> dict[str, Size]:
    """The size of each of AREAS.

    :param files: a path -> its text.
    """
    sizes = dict.fromkeys(AREAS, Size())
    for name, text in files.items():
        if area := next((area for area, starts in AREAS.items() if name.startswith(starts)), None):
            if name.endswith(".py"):
                sizes[area] += of_python(text, with_tests=not name.startswith("tests/"))
            elif name.endswith((".sh", ".pl")):
                sizes[area] += of_script(text)
    return sizes


def _rules(settings: dict[str, Any]) -> dict[str, int]:
    """How strict the linters are, by pyproject.toml."""
    ruff, lint, mypy = settings["ruff"], settings["ruff"]["lint"], settings["mypy"]
    ignored = [(glob.count(",") + 1) * len(rules) for glob, rules in lint["per-file-ignores"].items()]
    return {
        "line length": ruff["line-length"],
        "ruff: rules": len(lint["select"]),
        "ruff: rules that folders are spared": len(lint["ignore"]) + sum(ignored),
        "mypy: strict": int(mypy["strict"]),
        "mypy: modules that are spared": sum(len(one["module"]) for one in mypy["overrides"]),
        "settings of ruff and mypy": len(ruff) + len(lint) + len(mypy),
    }


def numbers(files: dict[str, str], sizes: dict[str, Size]) -> dict[str, int]:
    """Every number that has a limit, by name.

    :param files: a path -> its text.
    :param sizes: the size of each of AREAS.
    """

    def lines(*suffixes: str) -> int:
        return sum(bool(line.strip()) for name in files if name.endswith(suffixes) for line in files[name].splitlines())

    importlib.import_module("homelab.provider.registry")  # declares them
    python = "".join(text for name, text in files.items() if name.endswith(".py"))
    return {
        **{f"{area}: code lines": size.code for area, size in sizes.items()},
        **{f"{area}: statements": size.statements for area, size in sizes.items()},
        "YAML: lines": lines(".yaml", ".yml"),
        "Go: lines": lines(".go"),
        **{f"# {words.strip()}": python.count(f"# {words}") for words in EXCEPTIONS},
        "settings: keys": sum(len(model.model_fields) for model in MODELS.values()),
        "resources: kinds": len(declared()),
        "documents: words": sum(len(text.split()) for name, text in files.items() if name.endswith(".md")),
        **_rules(tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]),
    }


def worse_by(name: str, now: int, limit: int) -> int:
    """By how much a number is worse than its limit; negative: better."""
    return limit - now if name in AT_LEAST else now - limit


def worse(now: dict[str, int], limits: dict[str, int]) -> list[str]:
    """A sentence for each number that is worse than its limit by more than 1 %, and may not be."""
    return [
        f"{name}: {number} is {by} {'less' if name in AT_LEAST else 'more'} than the limit of {limits[name]}"
        for name, number in now.items()
        if name not in FREE and (by := worse_by(name, number, limits[name])) > limits[name] / 100
    ]


def lowered(now: dict[str, int], limits: dict[str, int]) -> dict[str, int]:
    """The limits, or today's numbers where these are better. What has no limit yet gets today's number."""
    limits = {**now, **limits}
    return {name: number if worse_by(name, number, limits[name]) < 0 else limits[name] for name, number in now.items()}


def main() -> int:
    """Print the table; rewrite the limits where that is asked for."""
    files = _files()
    sizes = areas(files)
    now = numbers(files, sizes)
    text = LIMITS.read_text(encoding="utf-8")
    limits: dict[str, int] = yaml.safe_load(text)
    if "--lower" in sys.argv:
        limits = lowered(now, limits)
        head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
        LIMITS.write_text(head + yaml.safe_dump(limits, sort_keys=False), encoding="utf-8")
    if now.keys() != limits.keys():
        print(f"tests/size.yaml: no limit, or a limit of nothing: {', '.join(now.keys() ^ limits.keys())}")
        return 1
    print(f"{'':36}{'now':>8}{'limit':>8}{'more':>8}")
    for name, number in now.items():
        print(f"{name:36}{number:>8}{limits[name]:>8}{number - limits[name]:>+8}")
    print("all lines, for orientation:", ", ".join(f"{area} {size.lines}" for area, size in sizes.items()))
    if better := [name for name, number in now.items() if worse_by(name, number, limits[name]) < -limits[name] / 100]:
        print(f"better than the limit by more than 1 %: {', '.join(better)}. Next: python -m tests.size --lower")
    if problems := worse(now, limits):
        print("wanted: no number worse than its limit in tests/size.yaml by more than 1 %")
        print("found: ", "\n        ".join(problems))
        print("why:    the project is to get smaller, and its linters no laxer")
        print("next:   take as much away in the same place. A limit is raised by hand, in a commit that says why")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
