"""homelab/text.py: what a host says, on its way to a person."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty  # type: ignore[import-untyped]
from pulumi.runtime.proto import engine_pb2, engine_pb2_grpc

from homelab.doctor.report import Report
from homelab.errors import HomelabError, SeveralErrors
from homelab.findings import Finding
from homelab.provider import log
from homelab.remote import scripts
from homelab.text import clean, tell
from tests.rows import rows


@rows(
    ("said", "shown"),
    [
        ("plain text\n\twith für 日本 😀", "plain text\n\twith für 日本 😀"),
        ("\x1b[31;1mred\x1b[0m", "red"),
        ("\x9b31mred", "red"),
        ("\x1b]0;a title\x07text", "text"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bP1$r\x1b\\x", "x"),
        ("\x1b(Btext\x1b7", "text"),
        ("10%\r100%\r\ndone", "10%\n100%\ndone"),
        ("all is well\rwanted: x", "all is well\nwanted: x"),
        ("\x1b", "\\x1b"),
        ("\x1b\x1b[0m[2J", "\\x1b[2J"),
        ("a\x00b\x07c\x7fd\x85e", "a\\x00b\\x07c\\x7fd\\x85e"),
        ("a\u202eb\u2066c\u200f\u200b\ufeff\u2028", "a\\u202eb\\u2066c\\u200f\\u200b\\ufeff\\u2028"),
        ("a\ud800b", "a\\ud800b"),
        ("\U000e0041", "\\ue0041"),
        ("\x9d0;a title\x07text\x90q\x9c", "text"),
    ],
)
def test_what_a_terminal_would_obey_is_taken_out_or_shown_as_a_number(said: str, shown: str) -> None:
    assert clean(said) == shown
    assert clean(shown) == shown


def test_much_that_begins_and_never_ends_is_cleaned_in_no_time() -> None:
    began = time.monotonic()
    assert clean("\x90" * 60_000) == "\\x90" * 60_000
    assert time.monotonic() - began < 5


def test_an_error_is_clean_in_its_text_and_in_its_parts() -> None:
    error = HomelabError(wanted="\x1b[2Ja", found="b\rc", why="\x07d", next="e\u202e")
    assert str(error) == "wanted: a\nfound:  b\nc\nwhy:    \\x07d\nnext:   e\\u202e"
    assert error.found == "b\nc"
    assert "\x07" not in str(SeveralErrors([error]))


def test_an_installed_package_names_documents_by_the_command_that_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "see docs/nvidia.md#cuda. $schema=docs/config.schema.json\n(examples/settings/new-vm.yaml) /docs/x.md"
    assert clean(text) == text, "in a clone the paths are right"
    monkeypatch.setattr("homelab.text._IN_A_CLONE", False)
    assert (shown := clean(text)) == (
        "see `homelab docs nvidia#cuda`. $schema=docs/config.schema.json\n(`homelab docs new-vm`) /docs/x.md"
    )
    assert clean(shown) == shown, "a text is shown by several"


def test_what_is_told_is_clean(capsys: pytest.CaptureFixture[str]) -> None:
    tell("VM 103 (\x1b]0;x\x07Sand\x1b[5mbox\ud800)")
    assert capsys.readouterr().out == "VM 103 (Sandbox\\ud800)\n"


def test_the_engine_is_told_in_whose_line_past_the_environments_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    class Listening(engine_pb2_grpc.EngineServicer):
        def Log(self, request: engine_pb2.LogRequest, _: object) -> Empty:
            told.append((request.message, request.urn))
            return Empty()

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server = grpc.server(ThreadPoolExecutor(1))
    engine_pb2_grpc.add_EngineServicer_to_server(Listening(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    token = log.URN.set("urn:a")
    for meanwhile in (True, False):
        log.Engine(f"127.0.0.1:{port}").tell("drift", meanwhile=meanwhile)
    log.URN.reset(token)
    server.stop(None)
    assert told == [("drift", "urn:a"), ("drift", "")]


def test_a_diagnosis_is_clean() -> None:
    report = Report("host", "a\x1b[2J", ["b\r"], [], [Finding("\x07", "d", "e", "f")], ["g\u202e"])
    text = report.text()
    assert clean(text) == text and "\\x07" in text
    told = json.dumps(report.values())
    assert "\x07" not in told and "\x1b" not in told


def test_a_scripts_answer_holds_nothing_that_cannot_be_written() -> None:
    assert scripts.answer('hello\n{"a": ["\\ud800", {"b\\udfff": 1}]}\n') == {"a": ["?", {"b?": 1}]}
    assert scripts.answer('{"a": "\\ud83d\\ude00"}') == {"a": "😀"}


def test_what_a_login_prints_in_the_answers_own_line_is_passed_over() -> None:
    assert scripts.answer('hello\n\x1b]0;root@pve\x07{"a": {"b": 1}}\n') == {"a": {"b": 1}}


@rows("said", ["", "not json", "[1]", '{"a": "\x01"}', '{"a":'])
def test_an_answer_that_cannot_be_read_is_a_message(said: str) -> None:
    with pytest.raises(HomelabError, match="one line of JSON as an answer"):
        scripts.answer(said)
