"""CI's workflows: what runs a pull request's code has nothing to give away, and what may write runs none of it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import NEEDS_LINUX, NEEDS_UNIX, PROJECT
from tests.waiting import PATIENCE

WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
READ_ONLY = {"read", "none"}


def workflow(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
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
    # An empty one is that of a stack which the job itself makes.
    text = yaml.safe_dump(job).replace("PULUMI_CONFIG_PASSPHRASE: ''", "")
    assert not re.search(r"secrets\.|github\.token|GITHUB_TOKEN|PASSPHRASE|ACCESS_TOKEN", text)
    for step in job["steps"]:
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_only_what_no_pull_request_starts_has_a_secret_and_it_may_write_nothing() -> None:
    assert {path.name for path in WORKFLOWS} - OF_PULL_REQUESTS == {"drift.yml", "samples.yml", "site.yml"}
    jobs = workflow(PROJECT / ".github" / "workflows" / "drift.yml")["jobs"]
    assert (
        set(jobs["look"]["permissions"].values()) <= READ_ONLY and jobs["look"]["if"] == "vars.HOMELAB_DRIFT == 'true'"
    )
    assert "secrets." not in yaml.safe_dump(jobs["tell"])
    for test in workflow(PROJECT / ".github" / "workflows" / "samples.yml")["jobs"].values():
        assert test["permissions"] == {"contents": "read"} and test["if"] == "vars.HOMELAB_SAMPLES == 'true'"
        assert "secrets." not in yaml.safe_dump(test)


@pytest.mark.parametrize(("file", "name", "job"), JOBS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_job_that_may_write_runs_nothing_of_the_repository(file: str, name: str, job: dict[str, Any]) -> None:
    if set(job["permissions"].values()) <= READ_ONLY:
        return
    assert not runs_code(job)
    for step in job["steps"]:
        assert not re.search(r"\bmake\b|python|bash |sh |\./|\$\{\{", step.get("run", "")), step


def test_the_published_site_is_the_one_that_make_docs_builds() -> None:
    jobs = workflow(PROJECT / ".github" / "workflows" / "site.yml")["jobs"]
    (upload,) = [
        step for step in jobs["build"]["steps"] if step.get("uses", "").startswith("actions/upload-pages-artifact@")
    ]
    assert {"run": "make docs"} in jobs["build"]["steps"] and jobs["build"]["permissions"] == {"contents": "read"}
    built = re.search(r"^docs:.*(?:\n\t.*)*\n\t@\$\(SITE\) (\S+)$", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    assert built is not None and built[1] == upload["with"]["path"]
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["permissions"] == {"pages": "write", "id-token": "write"}


@pytest.mark.parametrize(("file", "name", "job"), JOBS, ids=lambda value: value if isinstance(value, str) else "")
def test_an_action_is_pinned_by_its_hash(file: str, name: str, job: dict[str, Any]) -> None:
    for step in job["steps"]:
        assert re.fullmatch(r"[a-z-]+/[a-z-]+@[0-9a-f]{40}", step.get("uses", "a/b@" + "0" * 40)), step


WINDOWS = [
    line.strip().removeprefix(".venv\\Scripts\\")
    for job in workflow(PROJECT / ".github" / "workflows" / "windows.yml")["jobs"].values()
    for step in job["steps"]
    for line in step.get("run", "").splitlines()
]


def test_what_the_windows_jobs_run_is_there() -> None:
    words = [word for line in WINDOWS for word in line.split() if word.endswith(".txt") or word.startswith("tests")]
    assert {"requirements.txt", "requirements-dev.txt", "tests/unit"} == set(words)
    assert all((PROJECT / word).exists() for word in words)
    for module in {line.split()[2] for line in WINDOWS if line.startswith("python -m")} - {"venv", "pip"}:
        done = subprocess.run(
            [sys.executable, "-m", module, "--help"], cwd=PROJECT, capture_output=True, timeout=PATIENCE
        )
        assert done.returncode == 0, (module, done.stderr)


@pytest.mark.parametrize("name", NEEDS_LINUX)
def test_what_is_said_to_need_linux_is_there(name: str) -> None:
    path = PROJECT / "tests" / name
    assert path.is_dir() if name.endswith("/") else path.is_file()


@pytest.mark.parametrize("name", NEEDS_UNIX)
def test_what_is_said_to_need_unix_is_there(name: str) -> None:
    file, _, test = name.partition("::")
    assert f"def {test}(" in (PROJECT / "tests" / file).read_text(encoding="utf-8")


def test_a_unit_test_that_runs_on_windows_imports_nothing_that_needs_linux() -> None:
    wrong = []
    for path in (PROJECT / "tests" / "unit").glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [one.name for one in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                ours = (
                    name.partition(".")[0] in ("lab", "bench")
                    or f"{name.removeprefix('tests.').partition('.')[0]}/" in NEEDS_LINUX
                )
                if (
                    ours or name in ("fcntl", "pwd", "pty", "resource", "termios")
                ) and f"unit/{path.name}" not in NEEDS_LINUX:
                    wrong.append((path.name, name))
    # The engine's Python works on Windows, too; the tests of what it makes don't.
    assert [one for one in wrong if not one[1].startswith("engine")] == []


# -- conditions ------------------------------------------------------------------------------------------------------------
def holds(expression: str, context: dict[str, Any]) -> Any:
    """An expression of GitHub's, as far as the workflows use them: paths, `==`, `!=`, `&&`, `||`, texts, null, always()."""

    def value(match: re.Match[str]) -> str:
        found: Any = context
        for part in re.findall(r"\w+", match[0]):
            found = found.get(part) if isinstance(found, dict) else None
            if isinstance(found, list):
                found = dict(enumerate(found)) and {str(number): one for number, one in enumerate(found)}
        return repr(found)

    text = expression.removeprefix("${{").removesuffix("}}").strip().replace("always()", "True").replace("null", "None")
    text = re.sub(r"\b(?:github|vars|needs)(?:\.\w+|\[\d+\])+", value, text)
    return eval(text.replace("&&", " and ").replace("||", " or "), {"__builtins__": {}})


def of_run(event: str, *numbers: int) -> dict[str, Any]:
    return {"github": {"event": {"workflow_run": {"event": event, "pull_requests": [{"number": n} for n in numbers]}}}}


CONDITIONS = [
    ("comment.yml", "comment", of_run("pull_request", 7), True),
    ("comment.yml", "comment", of_run("pull_request"), False),  # of a fork
    ("comment.yml", "comment", of_run("push", 7), False),
    ("drift.yml", "look", {"vars": {"HOMELAB_DRIFT": "true"}}, True),
    ("drift.yml", "look", {"vars": {}}, False),
    ("drift.yml", "look", {"vars": {"HOMELAB_DRIFT": "false"}}, False),
    ("preview.yml", "preview", {"github": {"event_name": "pull_request"}}, True),
    ("preview.yml", "preview", {"github": {"event_name": "push"}}, False),
    ("samples.yml", "test", {"vars": {"HOMELAB_SAMPLES": "true"}}, True),
    ("samples.yml", "test", {"vars": {}}, False),
    ("samples.yml", "plain", {"vars": {"HOMELAB_SAMPLES": "true"}}, True),
    ("samples.yml", "plain", {"vars": {}}, False),
    ("site.yml", "build", {"vars": {"HOMELAB_SITE": "true"}}, True),
    ("site.yml", "build", {"vars": {}}, False),
    ("windows.yml", "first-hour", {"github": {"event_name": "workflow_dispatch"}}, True),
    ("windows.yml", "first-hour", {"github": {"event_name": "pull_request"}}, False),
    ("windows.yml", "preview", {"github": {"event_name": "workflow_dispatch"}}, True),
    ("windows.yml", "preview", {"github": {"event_name": "push"}}, False),
]


@pytest.mark.parametrize(("file", "job", "context", "runs"), CONDITIONS)
def test_a_job_runs_when_it_is_meant_to(file: str, job: str, context: dict[str, Any], runs: bool) -> None:
    condition = workflow(PROJECT / ".github" / "workflows" / file)["jobs"][job]["if"]
    assert bool(holds(condition, context)) is runs


def test_every_condition_of_a_job_has_its_cases() -> None:
    assert {(file, name) for file, name, job in JOBS if "if" in job} == {(file, job) for file, job, _, _ in CONDITIONS}


def test_the_runner_and_the_stack_are_the_usual_ones_unless_the_repository_names_others() -> None:
    look = workflow(PROJECT / ".github" / "workflows" / "drift.yml")["jobs"]["look"]
    (stack,) = [step["env"]["STACK"] for step in look["steps"] if step.get("id") == "look"]
    assert [holds(one, {"vars": {}}) for one in (look["runs-on"], stack)] == ["ubuntu-24.04", "homelab"]
    others = {"vars": {"HOMELAB_RUNNER": "at-home", "HOMELAB_STACK": "gaming"}}
    assert [holds(one, others) for one in (look["runs-on"], stack)] == ["at-home", "gaming"]


def test_the_linter_has_nothing_to_say() -> None:
    command = [str(Path(sys.executable).parent / "zizmor"), "--offline", "--no-progress", "--quiet"]
    done = subprocess.run([*command, str(WORKFLOWS[0].parent)], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_linter_finds_what_it_is_for(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yml"
    bad.write_text(
        "name: bad\non: pull_request_target\njobs:\n  a:\n    runs-on: x\n    steps:\n      - uses: actions/checkout@v4\n"
        "      - run: echo ${{ github.event.pull_request.title }}\n"
    )
    command = [str(Path(sys.executable).parent / "zizmor"), "--offline", "--no-progress", str(bad)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode != 0
    for audit in ("template-injection", "unpinned-uses", "dangerous-triggers", "excessive-permissions"):
        assert audit in done.stdout, done.stdout
