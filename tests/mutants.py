"""Small faults put into the product, one at a time: which test notices each. mutants.yaml has them, and what became of each.

python -m tests.mutants [ID …]: runs these, or all, each in a copy of the checkout, against the tests that name its module, until one fails; rewrites
mutants.yaml; 1 where one lives, or its text is gone. --survivors: those that lived, against all tests without the engine.
One whose code is gone gets another in its place by hand, in a line of its module that chance chooses.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Sequence
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
        # A layer reaches modules of the agent through several others.
        far = 2 if tier == "agent" and tiers is AGENTS_TIERS else None
        distance = 0 if direct & _imports(path) else 1 if through & _imports(path) else far
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


def _result(mutant: Mutant) -> str:
    if "killed_by" in mutant:
        return f"killed by {mutant['killed_by']} in {mutant['seconds']} s"
    return f"gone: {mutant['gone']}" if "gone" in mutant else f"lives: {mutant['survived']}"


def main() -> int:
    """Run them."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("ids", nargs="*", help="which; all where none is named")
    parser.add_argument(
        "--survivors",
        action="store_true",
        help="those that lived, against all tests that need no engine, for as long as these take",
    )
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    text = DATA.read_text(encoding="utf-8")
    head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    data = yaml.safe_load(text)
    mutants: dict[str, Mutant] = data["mutants"]
    chosen = options.ids or [id for id, mutant in mutants.items() if "survived" in mutant or not options.survivors]
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
            written = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)
            DATA.write_text(head + written, encoding="utf-8")
            print(f"{id}: {_result(mutant)}", flush=True)
    return 0 if all("killed_by" in mutants[id] for id in chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
