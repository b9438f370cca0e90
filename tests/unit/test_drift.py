"""homelab drift: what has drifted, in words; one line for a telephone, Markdown for an issue; the timer that asks once a day."""

from __future__ import annotations

import configparser
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from homelab import drift, events
from homelab.cli import drift as command
from homelab.errors import HomelabError

SAID = "pve: drift (iommu): /etc/default/grub.d/zz-homelab-iommu.cfg was changed by hand"


def said(text: str, severity: str = "info") -> events.Diagnostic:
    return events.Diagnostic(severity, text)


def step(op: str, name: str, kind: str = "command:remote:Command") -> events.Step:
    return events.Step(op, kind, name)


EXPECTED = said("error: no changes were expected but changes were proposed", "error")
EVENTS: list[events.Event] = [
    said(SAID),
    said(SAID),
    step("refresh", "pve-probe"),
    step("update", "pve-cmdline"),
    step("same", "x"),
    EXPECTED,
]


def test_what_has_drifted_is_said_in_words_and_what_would_be_done() -> None:
    found = drift.of_events("homelab", EVENTS, 255)
    assert found.lines == ["pve: /etc/default/grub.d/zz-homelab-iommu.cfg was changed by hand"]
    assert found.changes == ["pve-cmdline"] and not found.errors
    assert "was changed by hand; `pulumi up --refresh` corrects it" in found.line and "\n" not in found.line
    assert "- pve: /etc/default/grub.d/zz-homelab-iommu.cfg was changed by hand" in found.markdown()
    assert found.markdown().endswith(f"{drift.MARK}\n")


def test_a_change_of_settings_or_of_the_program_is_not_called_drift() -> None:
    found = drift.of_events("homelab", [step("update", "pve-cmdline")], 255)
    assert (
        found.exists
        and "the settings or the program have changed" in found.line
        and "Nothing has drifted on the hosts" in found.markdown()
    )


def test_of_a_stack_that_was_never_deployed_nothing_can_have_drifted() -> None:
    log: list[events.Event] = [
        step("create", "homelab-homelab", "pulumi:pulumi:Stack"),
        step("create", "pve-cmdline"),
        EXPECTED,
    ]
    found = drift.of_events("homelab", log, 255)
    assert found.exists and found.line.startswith("homelab homelab: nothing can have drifted: ")
    assert "no `pulumi up` yet" in found.line and "pve-cmdline" not in found.line
    assert "no `pulumi up` yet" in found.markdown()


def test_nothing_is_nothing() -> None:
    found = drift.of_events("homelab", [step("refresh", "pve-probe"), step("same", "x")], 0)
    assert not found.exists and not found.errors and "no drift" in found.line


def test_a_host_that_is_off_is_no_drift_and_not_nothing() -> None:
    found = drift.of_events(
        "homelab",
        [
            said("error: Preview failed: wanted: to read pve\nfound:  it is off", "error"),
            said("preview failed", "error"),
        ],
        255,
    )
    assert found.errors == ["wanted: to read pve\nfound:  it is off"] and not found.exists
    assert "couldn't check for drift" in found.line and "```text\nwanted: to read pve" in found.markdown()
    assert drift.of_events("homelab", [], 255).errors == ["pulumi preview ended with status 255"]


@pytest.mark.parametrize(
    ("log", "code", "then"),
    [
        (EVENTS, 255, "`pulumi up --refresh` corrects it"),
        ([step("update", "pve-cmdline")], 255, "`pulumi up` does it"),
        ([said("error: Preview failed: wanted: a\nnext:   b", "error")], 255, "do what is said above, then ask again"),
        ([step("same", "x")], 0, None),
    ],
    ids=["drift", "changes", "error", "nothing"],
)
def test_it_ends_with_what_to_do(
    log: list[events.Event],
    code: int,
    then: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "look", lambda *_: drift.of_events("homelab", log, code))
    command.main(["--output", str(tmp_path / "drift.md")])
    last, text = capsys.readouterr().out.splitlines()[-1], (tmp_path / "drift.md").read_text()
    if then is None:
        assert not last.startswith("next:") and "What to do" not in text
    else:
        assert last.startswith("next: ") and then in last and f"What to do: {last.removeprefix('next: ')}." in text


def test_what_a_host_says_is_no_markup_in_the_issue() -> None:
    found = drift.of_events("homelab", [said("pve: drift: `@everyone` <img src=x> [a](b)"), step("update", "x")], 255)
    assert "\\`\\@everyone\\` \\<img src=x\\> \\[a\\](b)" in found.markdown()


def test_the_timer_is_two_units_that_systemd_can_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The service finds Pulumi, and the keys, where who installs it has them: systemd's own would be root's."""
    monkeypatch.setenv("PATH", "/home/anna/.pulumi/bin:/opt/100%/my tools")
    monkeypatch.setenv("LOGNAME", "anna")
    assert command.main(["--install-timer", "--stack", "prod"]) == 0
    text = capsys.readouterr().out
    for name, part in (("service", "Service"), ("timer", "Timer")):
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.read_string(text.partition(f"homelab-drift.{name}\n[")[2].join(["[", ""]).partition("\n# ---")[0])
        assert part in unit
    assert "User=anna\n" in text and 'Environment="PATH=/home/anna/.pulumi/bin:/opt/100%%/my tools"\n' in text
    assert "-m homelab drift --stack prod" in text and "OnCalendar=" in text and "SuccessExitStatus=1" in text


@pytest.fixture
def hook() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """An address that takes a POST, and what came."""
    came: list[tuple[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            came.append((self.headers["Content-Type"], body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return None

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/topic", came
        server.shutdown()


def test_a_hook_gets_one_line_of_drift_and_the_exit_status_tells(
    hook: tuple[str, list[tuple[str, str]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address, came = hook
    for log, code, status in ((EVENTS, 255, 1), ([step("same", "x")], 0, 0)):
        monkeypatch.setattr(command, "look", lambda *_, log=log, code=code: drift.of_events("homelab", log, code))
        assert command.main(["--hook", address, "--output", str(tmp_path / "drift.md")]) == status
    assert len(came) == 1 and came[0][0].startswith("text/plain") and "was changed by hand" in came[0][1]
    assert "Nothing has drifted" in (tmp_path / "drift.md").read_text(encoding="utf-8")
    command.tell(address, "a line", as_json=True)
    assert came[1] == ("application/json", '{"text": "a line", "content": "a line"}')


def test_a_check_that_cant_begin_is_told_to_the_hook(
    hook: tuple[str, list[tuple[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, came = hook
    monkeypatch.setenv("PATH", "")
    assert command.main(["--hook", address]) == 2
    assert "couldn't check for drift: wanted: Pulumi's CLI" in came[0][1]


def test_a_hook_that_does_not_answer_is_named_without_its_address() -> None:
    with pytest.raises(HomelabError) as error:
        command.tell("http://127.0.0.1:9/secret-topic", "x", as_json=False)
    assert "secret-topic" not in str(error.value)
    with pytest.raises(HomelabError):
        command.tell("file:///etc/passwd", "x", as_json=False)
