"""The tests that may move and get faster, but lose no case: protected.yaml lists them, with the cases that are run of each, by what runs them.

python -m tests.protected (of `make lint`): which have lost cases, and 1 where there are such.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from tests.conftest import PROJECT, SHARED

LIST = PROJECT / "tests" / "protected.yaml"

#: By a file's name and a test function's: how many cases there are.
Cases = Mapping[tuple[str, str], int]


def counted(ids: Iterable[str]) -> Cases:
    """Cases among pytest's ids of tests: `tests/lab/test_a.py::test_b[c]`."""
    parts = (re.match(r"(?:.*/)?([^/:]+)::(\w+)", id) for id in ids)
    return Counter((match[1], match[2]) for match in parts if match)


def lost(wanted: Cases, cases: Cases) -> list[tuple[str, str, int]]:
    """File, function and number of cases of each that has fewer than wanted. In a file of another name, the function is the one with most cases."""
    now = {
        (file, function): cases.get((file, function))
        or max((number for (_, other), number in cases.items() if other == function), default=0)
        for file, function in wanted
    }
    return [(*place, number) for place, number in now.items() if number < wanted[place]]


def rows(table: Any) -> int:
    """How many values are in a table's lists and mappings."""
    inner = table.values() if isinstance(table, dict) else table if isinstance(table, list) else None
    return 1 if inner is None else sum(map(rows, inner))


def _collected(texts: Iterable[str], **environment: str) -> set[str]:
    """pytest's ids of all tests in some files.

    :raises SystemExit: it can't collect them, for the errors that the text has.
    """
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", "-p", "no:cacheprovider", *texts]
    usual = {name: value for name, value in os.environ.items() if not name.startswith("HOMELAB_")}
    done = subprocess.run(command, cwd=PROJECT, env=usual | environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.stdout.partition(" ERRORS ")[2] or done.stdout)
    return {*done.stdout.splitlines()}


def run_by(texts: Iterable[str]) -> dict[str, Cases]:
    """The cases of the tests in some files, by what runs them (protected.yaml)."""
    tests = [*texts]
    by_hand = _collected(tests)
    folders = {"make test-lab": "tests/simulator/", "make test-metal": "tests/metal/"}
    found = {name: {id for id in by_hand if id.startswith(folder)} for name, folder in folders.items()}
    found["make test"] = by_hand.difference(*found.values())
    found["a push"] = set[str]().union(*(_collected(tests, HOMELAB_SEED=f"1:{share}/4") for share in range(1, 5)))
    found["make test-nightly"] = _collected(tests, HOMELAB_EVERY_CUT="1")
    return {name: counted(ids) for name, ids in found.items()}


def main() -> int:
    """Print what is lost."""
    if sys.platform != "linux":
        print("protected tests: not counted, for most of them run on Linux alone")
        return 0
    data = yaml.safe_load(LIST.read_text(encoding="utf-8"))
    wanted = {
        by: {(file, name): number for file, names in files.items() for name, number in names.items()}
        for by, files in data["cases"].items()
    }
    paths = {path.relative_to(PROJECT).as_posix(): path for path in (PROJECT / "tests").rglob("*.*")}
    texts = {
        name: path.read_text(encoding="utf-8") for name, path in paths.items() if re.search(r"/test_\w+\.py$", name)
    }
    functions = {function for cases in wanted.values() for _, function in cases}
    defining = {name: text for name, text in texts.items() if functions & {*re.findall(r"^def (\w+)", text, re.M)}}
    cases = run_by(defining)
    problems = [(by, *problem) for by in wanted for problem in lost(wanted[by], cases[by])]
    if not SHARED.exists():
        beyond = {
            name for text in defining.values() if "shared(" in text for name in re.findall(r"^def (\w+)", text, re.M)
        }
        problems = [problem for problem in problems if problem[2] not in beyond]
        print("protected tests: cases from captures and recordings weren't counted, for ../shared isn't there")
    found = [
        f"{file}::{name}: {by} runs {number} cases of {wanted[by][file, name]}" for by, file, name, number in problems
    ]
    for file, number in data["rows"].items():
        tables = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths.values() if path.name == file]
        if sum(map(rows, tables)) < number:
            found.append(f"{file} has {sum(map(rows, tables))} values of {number}")
    if found:
        print("wanted: every case of the tests in tests/protected.yaml")
        print("found: ", "\n        ".join(found))
        print("why:    they show what no other test shows")
        print("next:   bring them back. A number in tests/protected.yaml is lowered only by a commit that says why")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
