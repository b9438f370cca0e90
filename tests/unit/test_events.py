"""The engine's event log as types. The recordings are of Pulumi 3.259 on the lab's scenario rtx5090, without the resources' inputs and outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from homelab import events
from homelab.events import Diagnostic, Step, Summary
from lab.progress import follow

LOGS = Path(__file__).parent / "event_logs"


def recorded(name: str) -> list[events.Event]:
    return events.read(LOGS / f"{name}.jsonl")


def test_an_up_is_steps_in_their_order_messages_and_counts() -> None:
    log = recorded("up")
    changed = list(dict.fromkeys(event.name for event in log if isinstance(event, Step) and event.changes))
    assert changed[:3] == ["pve-probe", "pve-iommu", "pve-iommu-cmdline"] and changed[-1] == "pve-cards"
    said = [one for one in log if isinstance(one, Diagnostic) and one.severity == "info"]
    assert said[-1].text.startswith("pve: verified: kernel")
    assert events.counts(log) == {"create": 11} and events.errors(log) == []


def test_what_a_preview_plans_is_counted_in_words() -> None:
    assert events.in_words(events.counts(recorded("preview"))) == "11 to create"


def test_of_a_refresh_only_what_would_be_changed_is_a_change() -> None:
    log = recorded("drift")
    assert {event.name for event in log if isinstance(event, Step) and event.changes} == {
        "pve-vfio-initramfs",
        "pve-vfio-cmdline",
        "pve-boot-reboot",
        "pve-boot-verified",
    }
    assert events.in_words(events.counts(log)) == "2 to replace, 2 to change, 7 unchanged"


@pytest.mark.parametrize("name", ["refused", "up-refused"])
def test_a_refusal_is_said_once_and_without_the_engines_words_around_it(name: str) -> None:
    (error,) = events.errors(recorded(name))
    assert error.startswith("wanted: gpus.x: a card (10de:9999)\nfound:") and error.endswith("its slot")


def test_markup_and_what_a_terminal_would_obey_are_taken_out() -> None:
    raw = {"diagnosticEvent": {"severity": "error", "message": "<{%reset%}>error: a\x1b[31mb\r\nc<{%reset%}>"}}
    assert events.of(raw) == Diagnostic("error", "error: ab\nc")
    assert events.errors([Diagnostic("error", "error: Preview failed: ab")]) == ["ab"]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b'{"diagnosticEvent": null}',
        b'{"resourcePreEvent": {}}',
        b'{"resourcePreEvent": {"metadata": 1}}',
        b'{"aKindToCome": {"metadata": {}}}',
        b"\xff\xfe",
    ],
)
def test_a_line_of_another_form_is_passed_over(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(line + b'\n{"summaryEvent": {"resourceChanges": {"create": 1, "same": null}}}\n')
    assert events.read(path) == [Summary({"create": 1})]


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert events.read(tmp_path / "none") == []


def test_a_log_is_followed_to_its_end_with_lines_that_come_in_parts(tmp_path: Path) -> None:
    lines = [json.dumps({"diagnosticEvent": {"message": text, "severity": "info"}}) for text in ("one", "two", "three")]
    log = tmp_path / "events"
    log.touch()
    parts = iter([lines[0] + "\n" + lines[1][:9], lines[1][9:] + "\n", lines[2] + "\n" + lines[0][:5]])

    def has_ended() -> bool:
        with log.open("a") as file:
            file.write(part := next(parts))
        return part.startswith(lines[2])

    assert [one.text for one in follow(log, has_ended) if isinstance(one, Diagnostic)] == ["one", "two", "three"]


def test_a_passing_message_and_the_end_of_a_step_are_told_from_others() -> None:
    raw = {"diagnosticEvent": {"severity": "info", "message": "12 s", "ephemeral": True}}
    assert events.of(raw) == Diagnostic("info", "12 s", passing=True)
    ended = [one.ended for one in recorded("up") if isinstance(one, events.Step) and one.name == "pve-iommu-cmdline"]
    assert ended == [False, True]
