"""What the workflows' steps do, in a real bash: one comment that is updated; what a look for drift ends with; what a release needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.workflow_steps import Steps

COMMENT = ("comment.yml", "comment", "post it")
# What a host may have said: nothing of it may be obeyed.
EVIL = "$(touch evil) `touch evil` '; touch evil; \" --title x"


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    return Steps(tmp_path)


def test_where_github_does_not_answer_no_second_comment_is_made(steps: Steps) -> None:
    (steps.folder / "posted").mkdir()
    (steps.folder / "posted/preview.md").write_text("x")
    assert steps.run(*COMMENT, PULL_REQUEST="7", FAKE_GH_FAILS="api").returncode != 0
    assert steps.known == []


def test_one_comment_is_posted_and_then_updated(steps: Steps) -> None:
    folder = steps.folder / "posted"
    folder.mkdir()
    mark = "<!-- homelab-preview -->"
    for text in (f"first {EVIL}", "second"):
        (folder / "preview.md").write_text(f"{text}\n{mark}")
        assert steps.run(*COMMENT, PULL_REQUEST="7").returncode == 0
    assert steps.run(*COMMENT, PULL_REQUEST="8").returncode == 0
    assert [(one["on"], one["body"]) for one in steps.known] == [("7", f"second\n{mark}"), ("8", f"second\n{mark}")]
    assert not (steps.folder / "evil").exists()


@pytest.mark.parametrize("kind", ["a link", "a folder", "nothing"])
def test_what_a_pull_request_has_put_in_the_files_place_is_not_posted(kind: str, steps: Steps) -> None:
    place = steps.folder / "posted/preview.md"
    place.parent.mkdir()
    if kind == "a link":
        (steps.folder / "secret").write_text("a secret of the machine")
        place.symlink_to(steps.folder / "secret")
    elif kind == "a folder":
        place.mkdir()
    assert steps.run(*COMMENT, PULL_REQUEST="7").returncode != 0 and steps.known == []


@pytest.mark.parametrize(
    ("status", "said"), [(0, ""), (7, "::error title=Drift::"), (255, "::error title=Not known::")]
)
def test_a_look_for_drift_ends_as_its_preview_does(status: int, said: str, steps: Steps) -> None:
    steps.program("pulumi", f"#!/bin/sh\nexit {status}\n")
    done = steps.run("drift.yml", "look", "look")
    assert done.returncode == status
    assert done.stdout.startswith(said) and bool(done.stdout) is bool(said)


@pytest.mark.parametrize("passed", [0, 1])
def test_a_release_needs_a_nightly_run_that_has_passed_on_its_commit(passed: int, steps: Steps) -> None:
    steps.program("gh", f'#!/bin/sh\necho "$*" >>asked\necho {passed}\n')
    done = steps.run("../../.github/workflows/release.yml", "nightly", "look", GITHUB_SHA="abc")
    assert (done.returncode == 0) is bool(passed) and ("No nightly run has passed" in done.stdout) is (not passed)
    assert "--workflow nightly.yml --commit abc --status success" in (steps.folder / "asked").read_text()
