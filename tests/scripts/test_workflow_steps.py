"""What the workflows' steps do, in a real bash: one issue that is opened, updated and closed; one comment that is updated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from homelab.drift import MARK, Drift
from tests.workflow_steps import Steps

ISSUE = ("drift.yml", "tell", "open, update or close it")
COMMENT = ("comment.yml", "comment", "post it")
LOOK = ("drift.yml", "look", "look")
# What a host may have said: nothing of it may be obeyed.
EVIL = "$(touch evil) `touch evil` '; touch evil; \" --title x"


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    return Steps(tmp_path)


def told(steps: Steps, status: int, *lines: str) -> None:
    (steps.folder / "told").mkdir(exist_ok=True)
    (steps.folder / "told/drift.md").write_text(Drift("homelab", lines, (), ()).markdown())
    done = steps.run(*ISSUE, STATUS=str(status))
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_issue_is_opened_updated_closed_and_the_next_time_another_one(steps: Steps) -> None:
    told(steps, 0)
    assert steps.known == []
    told(steps, 1, f"pve: one {EVIL}")
    told(steps, 1, "pve: two")
    (issue,) = steps.known
    assert (issue["title"], issue["state"]) == ("A host has drifted", "open") and "two" in issue["body"]
    told(steps, 2)
    assert [one["title"] for one in steps.known] == ["Whether a host has drifted can't be told"]
    told(steps, 0)
    told(steps, 0)
    assert [(one["state"], one["said"]) for one in steps.known] == [("closed", "Nothing has drifted any more.")]
    told(steps, 1, "pve: three")
    assert [one["state"] for one in steps.known] == ["closed", "open"]
    assert not (steps.folder / "evil").exists() and MARK in issue["body"]


def test_issues_of_others_and_pull_requests_are_left_alone(steps: Steps) -> None:
    bot = {"login": "github-actions[bot]"}
    others = [
        {"number": 1, "id": 1, "user": {"login": "ann"}, "state": "open", "body": MARK, "title": "mine"},
        {"number": 2, "id": 2, "user": bot, "state": "open", "body": None, "title": "another workflow's"},
        {"number": 3, "id": 3, "user": bot, "state": "open", "body": MARK, "title": "its change", "pull_request": {}},
    ]
    steps.state.write_text(json.dumps(others))
    told(steps, 1, "pve: one")
    told(steps, 0)
    assert steps.known[:3] == others and steps.known[3]["state"] == "closed"


def test_where_github_does_not_answer_no_second_issue_and_no_second_comment_is_made(steps: Steps) -> None:
    (steps.folder / "told").mkdir()
    (steps.folder / "told/drift.md").write_text(MARK)
    (steps.folder / "posted").mkdir()
    (steps.folder / "posted/preview.md").write_text("x")
    assert steps.run(*ISSUE, STATUS="1", FAKE_GH_FAILS="api").returncode != 0
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


@pytest.mark.parametrize("status", [0, 1, 2])
def test_the_look_hands_its_status_on_whatever_it_is(status: int, steps: Steps) -> None:
    steps.program("make", '#!/bin/bash\necho "$@" >>made\n')
    python = steps.folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(
        '#!/bin/bash\n[ "$1" = engine/install.py ] && { echo "export FOUND=\'an engine\'"; exit; }\n'
        f'[ "$FOUND" = "an engine" ] && printf "%s\\n" "$@" >called && echo told >drift.md\nexit {status}\n'
    )
    python.chmod(0o755)
    done = steps.run(*LOOK, STACK="two words")
    assert done.returncode == 0, done.stderr
    assert (steps.folder / "output").read_text() == f"status={status}\n"
    assert (steps.folder / "summary").read_text() == "told\n"
    assert (steps.folder / "called").read_text().splitlines()[:4] == ["-m", "homelab", "drift", "--stack"]
    assert (steps.folder / "called").read_text().splitlines()[4] == "two words"


def test_a_look_that_says_nothing_fails_and_no_issue_is_touched(steps: Steps) -> None:
    steps.program("make", "#!/bin/bash\n")
    python = steps.folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/bash\n[ "$1" = engine/install.py ] || exit 2\n')
    python.chmod(0o755)
    assert steps.run(*LOOK, STACK="homelab").returncode != 0
    python.write_text("#!/bin/bash\nexit 1\n")  # there is no engine
    (steps.folder / "output").unlink(missing_ok=True)
    assert steps.run(*LOOK, STACK="homelab").returncode != 0 and not (steps.folder / "output").exists()
