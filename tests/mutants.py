"""Small faults put into the product, one at a time: which test notices each. mutants.yaml has them, and what became of each.

python -m tests.mutants [ID …]: runs these, or all, each in a copy of the checkout, against the tests that name its module, until one fails; rewrites
mutants.yaml; 1 where one lives, or its text is gone. --survivors: those that lived, against all tests without the engine. --table: prints the results as Markdown.
--draw N [PART]: prints N others for each part, to be read, and put into mutants.yaml in the place of those whose code is gone.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.util
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import yaml

from tests.conftest import PROJECT, SHARED

DATA = PROJECT / "tests" / "mutants.yaml"
#: For so long a mutant's tests run.
SECONDS = 240
#: The quick ones first. Tests with the engine run only where no others name the module.
TIERS = ("unit", "agent", "lab", "simulator", "engine", "e2e")
AGENTS_TIERS = ("agent", *(tier for tier in TIERS if tier != "agent"))

STOPS = "tests/agent/test_stops.py"
#: What survivors are tried against.
SUITE = ("tests/unit", "tests/agent", "tests/lab")
#: One of mutants.yaml: `file`, `function`, `before`, `after`; `killed_by` (a test's id) and `seconds`, or `survived` (which tests), or `gone` (since when).
Mutant = dict[str, Any]


class Gone(Exception):
    """A mutant's text isn't in its function exactly once."""


def functions(text: str) -> dict[str, ast.FunctionDef]:
    """The functions of a module and the methods of its classes, by their names."""
    found: dict[str, ast.FunctionDef] = {}
    for node in ast.parse(text).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        found |= {f"{prefix}{part.name}": part for part in inner if isinstance(part, ast.FunctionDef)}
    return found


def mutated(text: str, mutant: Mutant) -> str:
    """A module with the mutant in it.

    :raises Gone: its text isn't there.
    """
    if mutant["function"] not in (known := functions(text)):
        raise Gone
    lines = text.splitlines(keepends=True)
    function = known[mutant["function"]]
    numbers = [n for n in range(function.lineno - 1, function.end_lineno or 0) if lines[n].strip() == mutant["before"]]
    if len(numbers) != 1:
        raise Gone
    lines[numbers[0]] = lines[numbers[0]].replace(mutant["before"], mutant["after"])
    return "".join(lines)


@functools.cache
def _imports(path: Path) -> frozenset[str]:
    """What a file imports: modules, and what may be modules."""
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def naming(file: str) -> list[str]:
    """The files of tests that import a module, then those that import what imports it; the quick ones first."""

    def module(path: Path) -> str:
        return path.relative_to(PROJECT).as_posix().removesuffix(".py").replace("/", ".")

    sources = {
        module(path): path for top in ("homelab", "remote_scripts", "tests") for path in (PROJECT / top).rglob("*.py")
    }
    itself = file.removesuffix(".py").replace("/", ".")
    direct, through = {itself}, {name for name, path in sources.items() if itself in _imports(path)}
    tiers = AGENTS_TIERS if file.startswith("remote_scripts/") else TIERS
    ranks: dict[str, tuple[int, int]] = {}
    for path in sources.values():
        tier = path.parent.name
        distance = 0 if direct & _imports(path) else 1 if through & _imports(path) else None
        if path.name.startswith("test_") and tier in tiers and distance is not None:
            ranks[path.relative_to(PROJECT).as_posix()] = (distance, tiers.index(tier))
    if file.startswith("remote_scripts/"):
        ranks[STOPS] = min(ranks.values(), default=(0, 0))
    # The one that stops every layer of the agent anywhere comes behind those that are nearest to the module.
    own = itself.rpartition(".")[2]
    tests = sorted(ranks, key=lambda name: (ranks[name][0], name == STOPS, own not in name, *ranks[name], name))
    return [name for name in tests if not name.startswith(("tests/engine/", "tests/e2e/"))] or tests


def copied(folder: Path) -> Path:
    """A copy of the checkout with an environment of its own: what lies in the copy is what its tests import."""
    tree = folder / "checkout"
    listed = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=PROJECT, stdout=subprocess.PIPE)
    for name in filter(None, os.fsdecode(listed.stdout).split("\0")):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        if (PROJECT / name).exists():
            shutil.copy2(PROJECT / name, tree / name, follow_symlinks=False)
    for link, target in ((tree / ".cache", PROJECT / ".cache"), (folder / "shared", SHARED)):
        link.symlink_to(target.resolve())
    venv.create(tree / ".venv", symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(tree / ".venv")}))
    (packages / "mutants.pth").write_text(f"{tree}\n{sysconfig.get_path('purelib')}\n")
    for program in Path(sys.executable).parent.iterdir():
        if not (tree / ".venv" / "bin" / program.name).exists():
            (tree / ".venv" / "bin" / program.name).symlink_to(program)
    subprocess.run(["git", "init", "--quiet"], cwd=tree, check=True)
    subprocess.run(["git", "add", "--all"], cwd=tree, check=True)
    return tree


def tested(tree: Path, tests: Sequence[str], seconds: int) -> tuple[int, str, int]:
    """pytest's status, the first test that failed, and the seconds that it took. 124: they were more than it may."""
    begin = time.monotonic()
    python = [str(tree / ".venv" / "bin" / "python"), "-m", "tests.scratch", "-m", "pytest"]
    command = ["timeout", "-s", "INT", "-k", "20", str(seconds), *python, "-x", "-q", "-p", "no:cacheprovider"]
    command += [f"--timeout={seconds // 2}", *tests]  # a test that hangs has failed
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = done.stdout.decode(errors="replace")
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.MULTILINE)
    # Without the name of a test, conftest.py can't be imported: no test can.
    return done.returncode, failed[1] if failed else tests[0], round(time.monotonic() - begin)


def tried(tree: Path, mutant: Mutant, tests: Sequence[str], seconds: int) -> Mutant:
    """A mutant with what became of it. A test that also fails without it says nothing of it."""
    path = tree / mutant["file"]
    original = path.read_text(encoding="utf-8")
    kept = {key: mutant[key] for key in ("file", "function", "before", "after")}

    def put(text: str) -> None:
        path.write_text(text, encoding="utf-8")
        Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)  # may have the same time and size

    try:
        put(mutated(original, mutant))
    except Gone:
        return kept | {"gone": "its text isn't in its function once"}
    try:
        status, failed, took = tested(tree, tests, seconds)
    finally:
        put(original)
    if status in (124, 137):
        return kept | {"survived": f"{seconds} s of {len(tests)} files of tests, from {tests[0]} on"}
    if not status:
        return kept | {"survived": f"{len(tests)} files of tests, from {tests[0]} on"}
    if tested(tree, [failed], seconds)[0]:
        return kept | {"survived": f"it isn't known: {failed} fails without it, too"}
    return kept | {"killed_by": failed, "seconds": took}


_SIGNS: dict[type[ast.AST], tuple[str, str]] = {
    **{ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.In: ("in", "not in"), ast.NotIn: ("not in", "in")},
    **{ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">")},
    **{ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"), ast.And: ("and", "or"), ast.Or: ("or", "and")},
}
_EMPTY = {"bool": "False", "str": "''", "int": "0", "list": "[]", "tuple": "()", "dict": "{}", "None": "None"}
# What is said to people, and for how long something is waited.
_SAYS = re.compile(r"(say|tell\w*|debug|info|warn\w*|Failure|_about|\w*Error|Refusal|\w*[Rr]emark\w*|write_log)$")
_WAITS = re.compile(r"second|timeout|wait|_grace|interval", re.IGNORECASE)


def _faults(node: ast.AST, returns: str) -> Iterator[tuple[str, ast.expr | ast.stmt, int, int, str, str]]:
    """Kind, node, columns from and to, and the text that goes and that comes, of each fault that a node can have."""

    def gap(kind: str, sign: type[ast.AST], left: ast.expr, right: ast.expr) -> Iterator[Any]:
        if left.end_lineno == right.lineno:
            yield kind, left, left.end_col_offset, right.col_offset, *_SIGNS[sign]

    match node:
        case ast.Compare(left=left, ops=[sign], comparators=[right]):
            yield from gap("comparison turned", type(sign), left, right)
        case ast.BoolOp(op=sign, values=values):
            for left, right in zip(values, values[1:], strict=False):
                yield from gap("and, or exchanged", type(sign), left, right)
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test) if not isinstance(test, ast.UnaryOp):
            yield "condition negated", test, test.col_offset, test.end_col_offset or 0, "", "not ({})"
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "not removed", node, node.col_offset, operand.col_offset, "not ", ""
        case ast.Constant(value=bool(value)):
            yield "constant changed", node, node.col_offset, node.end_col_offset or 0, str(value), str(not value)
        case ast.Constant(value=int(value)):
            yield "constant changed", node, node.col_offset, node.end_col_offset or 0, str(value), str(value + 1)
        case ast.Expr(value=ast.Call()):
            yield "call dropped", node, node.col_offset, node.end_col_offset or 0, "", "pass"
        case ast.Return(value=ast.expr() as value) if empty := _EMPTY.get(re.split(r"\[| \|", returns)[0]):
            empty = "None" if "None" in returns else empty
            yield "return emptied", value, value.col_offset, value.end_col_offset or 0, "", empty
        case ast.Tuple(elts=[*_, before, last], ctx=ast.Load()) | ast.List(elts=[*_, before, last], ctx=ast.Load()):
            if before.end_lineno == last.end_lineno:
                end = last.end_col_offset or 0
                yield "element dropped", before, before.end_col_offset or 0, end, "", ","


def drawable(file: str) -> Iterator[tuple[str, Mutant]]:
    """All mutants that can be drawn of a module, with their kinds: each in one line that is there once in its function."""
    text = (PROJECT / file).read_text(encoding="utf-8")
    lines = text.splitlines()
    for name, function in functions(text).items():
        todo: list[ast.AST] = list(function.body)
        returns = ast.unparse(function.returns) if function.returns else ""
        while todo:
            node = todo.pop()
            match node:
                case ast.Raise() | ast.JoinedStr():
                    continue
                case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called)) if _SAYS.search(called):
                    continue
                case ast.Expr(value=ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called))) if _SAYS.search(
                    called
                ):
                    continue
                case ast.keyword(arg=str(target)) | ast.Assign(targets=[ast.Name(id=target)]) if _WAITS.search(target):
                    continue
                case ast.AnnAssign():
                    todo += [node.value] if node.value else []
                    continue
            todo += ast.iter_child_nodes(node)
            for kind, place, start, end, old, new in _faults(node, returns):
                if place.lineno != place.end_lineno:
                    continue
                whole = lines[place.lineno - 1]
                piece = whole.encode()[start:end].decode()
                changed = piece.replace(old, new, 1) if old else new.format(piece) if "({})" in new else new
                after = whole.encode()[:start].decode() + changed + whole.encode()[end:].decode()
                mutant = {"file": file, "function": name, "before": whole.strip(), "after": after.strip()}
                try:
                    ast.parse(mutated(text, mutant))
                except (Gone, SyntaxError):
                    continue
                if mutant["after"] != mutant["before"]:
                    yield kind, mutant


def drawn(files: Sequence[str], seed: str) -> Iterator[Mutant]:
    """Mutants of some modules, in an order that chance gives: each of another function, of a kind that chance chooses."""
    chance = random.Random(seed)
    kinds: dict[str, list[Mutant]] = {}
    for file in files:
        for kind, mutant in drawable(file):
            kinds.setdefault(kind, []).append(mutant)
    met = set[tuple[str, str]]()
    while any(kinds.values()):
        of_kind = kinds[chance.choice(sorted(kind for kind, mutants in kinds.items() if mutants))]
        mutant = of_kind.pop(chance.randrange(len(of_kind)))
        if (mutant["file"], mutant["function"]) not in met:
            met.add((mutant["file"], mutant["function"]))
            yield mutant


def _dumped(head: str, data: dict[str, Any]) -> str:
    return head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)


def _result(mutant: Mutant) -> str:
    if "killed_by" in mutant:
        return f"killed by {mutant['killed_by']} in {mutant['seconds']} s"
    return f"gone: {mutant['gone']}" if "gone" in mutant else f"lives: {mutant['survived']}"


def main() -> int:
    """Run, print or draw."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("ids", nargs="*", help="which; all where none is named")
    parser.add_argument(
        "--survivors",
        action="store_true",
        help="those that lived, against all tests that need no engine, for as long as these take",
    )
    parser.add_argument("--table", action="store_true", help="print the results as Markdown")
    parser.add_argument(
        "--draw", type=int, metavar="N", help="print N others of each part, or of the part that is named"
    )
    parser.add_argument("--seed", default="2026-11-27", help="for --draw")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    text = DATA.read_text(encoding="utf-8")
    head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    data = yaml.safe_load(text)
    mutants: dict[str, Mutant] = data["mutants"]
    if options.draw:
        for part in options.ids or data["parts"]:
            order = drawn(data["parts"][part], f"{options.seed} {part}")
            print(_dumped("", {part: [mutant for _, mutant in zip(range(options.draw), order, strict=False)]}))
        return 0
    chosen = options.ids or [id for id, mutant in mutants.items() if "survived" in mutant or not options.survivors]
    if options.table:
        print("| id | function | result |\n|---|---|---|")
        for id in chosen:
            print(f"| {id} | {mutants[id]['file']}: {mutants[id]['function']} | {_result(mutants[id])} |")
        return 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(options.workers) as pool:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(options.workers):
            trees.put(copied(Path(folder, str(number))))

        def one(id: str) -> tuple[str, Mutant]:
            tree = trees.get()
            try:
                tests = SUITE if options.survivors else naming(mutants[id]["file"])
                return id, tried(tree, mutants[id], tests, 3600 if options.survivors else SECONDS)
            finally:
                trees.put(tree)

        for done in as_completed([pool.submit(one, id) for id in chosen]):
            id, mutant = done.result()
            mutants[id] = mutant
            DATA.write_text(_dumped(head, data), encoding="utf-8")
            print(f"{id}: {_result(mutant)}", flush=True)
    return 0 if all("killed_by" in mutants[id] for id in chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
