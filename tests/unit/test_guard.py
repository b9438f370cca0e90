"""host/guard.py: who is at work on a host, in words."""

from __future__ import annotations

import getpass
import platform
from typing import NoReturn

import pytest

from host import guard


def test_a_user_without_a_name_is_somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> NoReturn:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", nobody)
    monkeypatch.setattr(platform, "node", lambda: "desk\ntop")
    assert guard._who().startswith("somebody on desk top, since 2")


def test_a_name_that_is_no_text_can_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "f\udcfcr")
    guard._who().encode()
