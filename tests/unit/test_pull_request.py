"""homelab/pull_request.py: the comment of a pull request: refusals first, counts, who has which card, the raw log folded away, one comment that is updated."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from homelab import pull_request
from homelab.cli.project import environment
from homelab.events import WILL_REFUSE, Diagnostic, Event, Summary
from tests.conftest import PROJECT
from tests.unit.hosts import values
from tests.unit.test_show import GPU


def test_refusals_come_first_then_counts_then_the_tree_and_the_log_is_folded_away() -> None:
    events: list[Event] = [
        Diagnostic("info", "the plan"),
        Diagnostic("error", "error: wanted: gpus.rtx5090 alone in its IOMMU group\nfound:  a disk"),
        Diagnostic("error", "preview failed"),
        Summary({"create": 12, "same": 3, "delete": 1}),
    ]
    text = pull_request.comment("homelab", 255, "the raw log", events, "pve\n└── VM 103")
    places = [
        text.index(part)
        for part in (
            "refused",
            "wanted: gpus.rtx5090",
            "**1 to delete, 12 to create, 3 unchanged**",
            "```text\npve\n└── VM 103\n```",
            "<details>",
            "the raw log",
        )
    ]
    assert places == sorted(places)
    assert text.startswith("### Preview of stack homelab: refused\n") and text.rstrip().endswith(pull_request.MARK)
    assert "preview failed" not in text and "error: wanted" not in text


def test_what_an_up_will_refuse_is_a_refusal() -> None:
    refusal = Diagnostic("warning", f"warning: {WILL_REFUSE}\nwanted: your own values")
    log: list[Event] = [refusal, Summary({"create": 18})]
    text = pull_request.comment("homelab", 0, "the raw log", log, "")
    assert text.startswith("### Preview of stack homelab: refused\n")
    assert text.index("wanted: your own values") < text.index("18 to create")


def test_a_log_with_fences_and_one_that_is_too_long_stay_in_their_fence() -> None:
    text = pull_request.comment("homelab", 0, "x" * 100_000 + "\n```\n# heading", [], "")
    assert len(text) < 65_536
    assert "\n````text\n" in text and text.count("\n````\n") == 1


def test_the_tree_has_what_the_settings_want_and_marks_it_against_what_the_stack_put_out(tmp_path: Path) -> None:
    file = tmp_path / "Pulumi.x.yaml"
    vms = {"new": {"host": "pve", "vmid": 104, "gpus": ["rtx5090"]}}
    file.write_text(yaml.safe_dump({"config": {"homelab:hosts": {"pve": values()}, "homelab:vms": vms}}))
    text = pull_request.drawn(file, dict)
    assert "+ RTX 5090 " in text and "vfio-pci" not in text, "no host was read"
    outputs = {
        "hosts": {"pve": {"gpus": {"rtx5090": GPU}}},
        "vms": {"old": {"host": "pve", "vmid": 103, "name": "Sandbox", "gpus": ["rtx5090"]}},
    }
    text = pull_request.drawn(file, lambda: outputs)
    assert "~ RTX 5090 " in text and "VM 103 (Sandbox)" in text and "+ VM 104 (new)" in text and "\x1b" not in text
    file.write_text("config: {'homelab:hosts': {pve: {address: 1}}}")
    assert pull_request.drawn(file, dict) == ""


def test_the_comment_is_found_again_by_its_mark() -> None:
    assert pull_request.MARK in (PROJECT / "examples" / "github" / "comment.yml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "path",
    [*PROJECT.glob(".github/workflows/*.yml"), *PROJECT.glob("examples/github/*.yml")],
    ids=lambda path: path.stem,
)
def test_a_workflow_that_runs_a_pull_requests_code_has_no_secret_and_may_write_nothing(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {}, "each job says what it needs"
    events = workflow[True]  # YAML takes the key `on` for a truth
    if "pull_request" in events:
        assert "secrets." not in text
        assert all(job["permissions"] == {"contents": "read"} for job in workflow["jobs"].values())
        assert text.count("uses: actions/checkout@") == text.count("persist-credentials: false")


def test_a_project_has_the_environment_that_it_is_used_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, other, link = (tmp_path / name for name in ("here", "other", ".venv"))
    here.mkdir()
    link.symlink_to(other)  # of another machine
    for prefix in (here, link):
        monkeypatch.setattr(sys, "prefix", str(prefix))
        assert environment(tmp_path) == ".venv" and link.readlink() == here
    link.unlink()
    link.mkdir()  # of somebody's own
    monkeypatch.setattr(sys, "prefix", str(here))
    assert environment(tmp_path) == str(here) and link.is_dir() and not link.is_symlink()
