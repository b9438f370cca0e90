"""Which tests count as races, and what the log of repeated runs comes to."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Literal

import pytest

from tests import races, repeated
from tests.waiting import wait_until


def helper() -> None:
    subprocess.Popen(["true"])  # never called: what the text names is what counts


def of_itself() -> None:
    helper()


def kill() -> None:
    """Ends nothing."""


def waits() -> None:
    kill()
    wait_until(lambda: True)


def test_a_test_that_starts_processes_by_a_helper_is_a_race_and_one_that_only_waits_is_none() -> None:
    assert races._races(of_itself, {})
    assert not races._races(waits, {})


def test_the_log_adds_up() -> None:
    runs = [
        {"tests": "races", "load": True, "failed": []},
        {"tests": "races", "load": False, "failed": ["tests/a.py::b"]},
        {"tests": "whole", "load": False, "failed": []},
    ]
    assert repeated.summed("\n".join(map(json.dumps, runs))) == [
        "whole: 1 of 1 runs without a failure, 0 under load",
        "races: 1 of 2 runs without a failure, 1 under load",
        "failed 1 times: tests/a.py::b",
    ]


def test_each_time_a_test_ends_belongs_to_the_next_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(repeated, "LOG", tmp_path / "runs.jsonl")
    runs = repeated.Runs(3, {"commit": "c"})
    runs.pytest_xdist_node_collection_finished(["a", "b"] * 3)
    one, other = object(), object()  # two processes of pytest, which have the same test at once
    ended: list[tuple[str, Any, str | None]] = [
        ("a", one, None), ("a", other, "call"), ("b", one, None), ("b", other, "teardown"), ("a", one, "setup"), ("b", one, None),
    ]  # fmt: skip
    for name, process, failing in ended:
        for when in ("setup", "call", "teardown"):
            outcome: Literal["passed", "failed"] = "failed" if when == failing else "passed"
            report = pytest.TestReport(name, ("a.py", 1, name), {}, outcome, None, when)
            report.__dict__["node"] = process
            runs.pytest_runtest_logreport(report)
    logged = [json.loads(run) for run in repeated.LOG.read_text().splitlines()]
    assert [(run["commit"], run["passed"], run["failed"]) for run in logged] == [
        ("c", 2, []),
        ("c", 0, ["a", "b"]),
        ("c", 1, ["a"]),
    ]


def test_what_is_collected_is_run_so_often_each_time_set_up_anew(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request.config.option, "times", 2, raising=False)
    items = [request.node]
    repeated.pytest_collection_modifyitems(request.config, items)
    first, second = items
    assert first is not second and first.nodeid == second.nodeid == request.node.nodeid
    assert first.funcargs == second.funcargs == {} and second._request.node is second
