"""Run tests again and again, and log each run in tests/runs.jsonl: whether the suite depends on chance shows only over many runs.

`python -m tests.repeated 20` runs the tests with the marker `races` (tests/races.py) so often; `--whole` the whole suite. With `--load` as many
processes as there are processors compute beside them. A line of the log is one run: when, of which commit, which tests, under load or not, how many
passed, and the names of those that failed. Runs of several days add up; `python -m tests.repeated 0` says to how many.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
LOG = PROJECT / "tests" / "runs.jsonl"
RACES = ("-m", "pytest", "-m", "races", "tests/unit", "tests/agent", "tests/scripts", "tests/lab")
WHOLE = ("-m", "tests.scratch", "-m", "pytest", "tests")
_COUNT = re.compile(r"(\d+) passed")
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


def once(arguments: tuple[str, ...], *, load: bool) -> dict[str, Any]:
    """Run pytest with `arguments`; the line of the log that says how it went."""
    began = time.time()
    with _computing(os.cpu_count() or 1 if load else 0):
        command = [sys.executable, *arguments, "-q", "-n", "auto", "--dist", "worksteal"]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=PROJECT, capture_output=True, text=True)
    failed = sorted(set(_FAILED.findall(done.stdout)))
    if done.returncode and not failed:
        failed = [f"pytest ended with {done.returncode}: {done.stdout[-300:]}{done.stderr[-300:]}"]
    return {
        "when": time.strftime("%Y-%m-%d %H:%M", time.gmtime(began)),
        "commit": commit.stdout.strip(),
        "tests": "whole" if arguments == WHOLE else "races",
        "load": load,
        "seconds": round(time.time() - began),
        "passed": sum(map(int, _COUNT.findall(done.stdout)[-1:])),
        "failed": failed,
    }


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


def main() -> int:
    """Run them, and log each run as it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("times", type=int)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--load", action="store_true")
    asked = parser.parse_args()
    bad = 0
    for _ in range(asked.times):
        run = once(WHOLE if asked.whole else RACES, load=asked.load)
        with LOG.open("a", encoding="utf-8") as log:
            log.write(json.dumps(run) + "\n")
        print(json.dumps(run), flush=True)
        bad += bool(run["failed"])
    print(*summed(LOG.read_text(encoding="utf-8") if LOG.exists() else ""), sep="\n")
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
