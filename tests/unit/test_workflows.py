"""CI's workflows: what runs a pull request's code has nothing to give away, and what may write runs none of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import PROJECT

WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
READ_ONLY = {"read", "none"}


def workflow(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


JOBS = [(path.name, name, job) for path in WORKFLOWS for name, job in workflow(path)["jobs"].items()]


# Jobs of a workflow that a pull request starts, or that goes on with what such a one has made: its code is anybody's.
OF_PULL_REQUESTS = {path.name for path in WORKFLOWS if {"pull_request", "workflow_run"} & set(workflow(path)[True])}  # type: ignore[index]


def runs_code(job: dict[str, Any]) -> bool:
    """Whether it has the repository's code to run."""
    return any(step.get("uses", "").startswith("actions/checkout@") for step in job["steps"])


def test_there_are_jobs_of_both_kinds() -> None:
    assert {runs_code(job) for _, _, job in JOBS} == {True, False}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_gives_its_jobs_no_right(path: Path) -> None:
    assert workflow(path)["permissions"] == {}


@pytest.mark.parametrize(("file", "name", "job"), JOBS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_job_that_runs_code_can_write_nothing_and_has_no_secret(file: str, name: str, job: dict[str, Any]) -> None:
    if not runs_code(job) or file not in OF_PULL_REQUESTS:
        return
    assert set(job["permissions"].values()) <= READ_ONLY
    text = yaml.safe_dump(job)
    assert not re.search(r"secrets\.|github\.token|GITHUB_TOKEN|PASSPHRASE|ACCESS_TOKEN", text)
    for step in job["steps"]:
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_only_what_no_pull_request_starts_has_a_secret_and_it_may_write_nothing() -> None:
    assert {path.name for path in WORKFLOWS} - OF_PULL_REQUESTS == {"drift.yml"}
    jobs = workflow(PROJECT / ".github" / "workflows" / "drift.yml")["jobs"]
    assert (
        set(jobs["look"]["permissions"].values()) <= READ_ONLY and jobs["look"]["if"] == "vars.HOMELAB_DRIFT == 'true'"
    )
    assert "secrets." not in yaml.safe_dump(jobs["tell"])


@pytest.mark.parametrize(("file", "name", "job"), JOBS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_job_that_may_write_runs_nothing_of_the_repository(file: str, name: str, job: dict[str, Any]) -> None:
    if set(job["permissions"].values()) <= READ_ONLY:
        return
    assert not runs_code(job)
    for step in job["steps"]:
        assert not re.search(r"\bmake\b|python|bash |sh |\./|\$\{\{", step.get("run", "")), step


@pytest.mark.parametrize(("file", "name", "job"), JOBS, ids=lambda value: value if isinstance(value, str) else "")
def test_an_action_is_pinned_by_its_commit(file: str, name: str, job: dict[str, Any]) -> None:
    text = (PROJECT / ".github" / "workflows" / file).read_text()
    for step in job["steps"]:
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", step["uses"]), step["uses"]
            assert re.search(rf"{re.escape(step['uses'])} # v\d+\.\d+\.\d+\n", text)


def test_the_linter_has_nothing_to_say() -> None:
    command = [str(Path(sys.executable).parent / "zizmor"), "--offline", "--no-progress", "--quiet"]
    done = subprocess.run([*command, str(WORKFLOWS[0].parent)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_linter_finds_what_it_is_for(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yml"
    bad.write_text(
        "name: bad\non: pull_request_target\njobs:\n  a:\n    runs-on: x\n    steps:\n      - uses: actions/checkout@v4\n"
        "      - run: echo ${{ github.event.pull_request.title }}\n"
    )
    command = [str(Path(sys.executable).parent / "zizmor"), "--offline", "--no-progress", str(bad)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    for audit in ("template-injection", "unpinned-uses", "dangerous-triggers", "excessive-permissions"):
        assert audit in done.stdout, done.stdout
