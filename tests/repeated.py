"""Run tests again and again, and log each run in tests/runs.jsonl: whether the suite depends on chance shows only over many runs.

`python -m tests.repeated 20` runs the tests with the marker `races` (tests/races.py) so often, in one session of pytest that collects them once; `--whole`
the whole suite. With `--load` as many processes as there are processors compute beside them. A line of the log is one run: when it had ended, of which
commit, which tests, under load or not, how many passed, and the names of those that failed. A run's last tests are beside the next one's first.
Runs of several days add up; `python -m tests.repeated 0` says to how many.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[1]
LOG = PROJECT / "tests" / "runs.jsonl"
#: Which tests -> pytest's words.
TESTS = {"races": ("-m", "races", "tests/unit", "tests/agent", "tests/scripts", "tests/lab"), "whole": ("tests",)}


class Runs:
    """Pytest's plugin: of tests that are repeated, each one's n-th time belongs to the n-th run.

    `line`: what each line of the log begins with.
    """

    def __init__(self, times: int, line: dict[str, Any]) -> None:
        self._line = line
        self._times = times
        self._tests = 0
        self._began = time.time()
        self._ended: Counter[str] = Counter()
        self._failing: set[tuple[str, object]] = set()
        self._runs: list[dict[str, bool]] = [{} for _ in range(times)]

    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self._tests = len(ids) // self._times

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = (report.nodeid, getattr(report, "node", None))
        if report.failed:
            self._failing.add(test)
        if report.when in ("setup", "call"):
            return
        run = self._runs[self._ended[report.nodeid]]
        self._ended[report.nodeid] += 1
        run[report.nodeid] = test not in self._failing
        self._failing.discard(test)
        if len(run) == self._tests:
            self._log(run)

    def _log(self, run: dict[str, bool]) -> None:
        began, self._began = self._began, time.time()
        line = self._line | {
            "when": time.strftime("%Y-%m-%d %H:%M", time.gmtime(self._began)),
            "seconds": round(self._began - began),
            "passed": sum(run.values()),
            "failed": sorted(name for name, passed in run.items() if not passed),
        }
        with LOG.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--times", type=int, default=1)
    parser.addoption("--logged", type=json.loads)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Runs(config.option.times, config.option.logged))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items[:] = [_again(item) for _ in range(config.option.times) for item in items]


def _again(item: pytest.Item) -> pytest.Item:
    # As an object of its own: what pytest sets up for one stays where the next one is the same.
    another = copy(item)
    another._report_sections = []
    if isinstance(another, pytest.Function):
        another._initrequest()
    return another


@contextlib.contextmanager
def _computing(processes: int) -> Iterator[None]:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for one in busy:
            one.kill()
            one.wait()


def summed(log: str) -> list[str]:
    """What the log's runs come to: a line for each kind of run, and one for each test that failed.

    Args:
        log: the file's text.
    """
    runs = [json.loads(line) for line in log.splitlines()]
    lines = []
    for which in ("whole", "races"):
        mine = [run for run in runs if run["tests"] == which]
        green = sum(not run["failed"] for run in mine)
        under = sum(run["load"] for run in mine)
        lines.append(f"{which}: {green} of {len(mine)} runs without a failure, {under} under load")
    names = [name for run in runs for name in run["failed"]]
    return lines + [f"failed {names.count(name)} times: {name}" for name in sorted(set(names))]


def _commit() -> str:
    """The commit, with `-dirty` where files are changed; the log itself is, after each run."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=PROJECT, capture_output=True, text=True)
    others = ["git", "diff", "--quiet", "HEAD", "--", ".", ":!tests/runs.jsonl"]
    return head.stdout.strip() + "-dirty" * (subprocess.run(others, cwd=PROJECT, check=False).returncode != 0)


def main() -> int:
    """Run them; each run is logged as it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("times", type=int)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--load", action="store_true")
    asked = parser.parse_args()
    which = "whole" if asked.whole else "races"
    line = {"when": "", "commit": _commit(), "tests": which, "load": asked.load}
    options = ["-p", "tests.repeated", f"--times={asked.times}", f"--logged={json.dumps(line)}"]
    status = 0
    if asked.times:
        with _computing(os.cpu_count() or 1 if asked.load else 0):
            command = [sys.executable, "-m", "tests.scratch", "-m", "pytest", *TESTS[which], *options]
            command += ["-q", "-n", "auto", "--dist", "worksteal"]
            status = subprocess.run(command, cwd=PROJECT, check=False).returncode
    print(*summed(LOG.read_text(encoding="utf-8") if LOG.exists() else ""), sep="\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
