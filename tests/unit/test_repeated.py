"""Which tests count as races, and what the log of repeated runs comes to."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests import races, repeated


def helper() -> None:
    subprocess.Popen(["true"])  # never called: what the text names is what counts


def of_itself() -> None:
    helper()


def test_a_test_that_starts_processes_by_a_helper_is_a_race() -> None:
    assert races._races(of_itself, {})
    assert not races._races(test_the_log_adds_up, {})


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


def test_a_run_that_fails_is_logged_with_the_tests_name(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.CompletedProcess([], 1, "FAILED tests/a.py::b[x] - assert 0\n1 failed, 7 passed in 3s\n", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    run = repeated.once(repeated.RACES, load=False)
    assert (run["passed"], run["failed"]) == (7, ["tests/a.py::b[x]"])
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 4, "", "no such option"))
    assert repeated.once(repeated.WHOLE, load=False)["failed"] == ["pytest ended with 4: no such option"]
