"""homelab/remote/loop.py: who waits for a host at a terminal is told so."""

from __future__ import annotations

import asyncio
import io
import sys

import pytest

from homelab.remote import loop


@pytest.mark.parametrize(
    ("is_terminal", "quiet", "said"),
    [(True, 0.0, "Waiting for pve ...\n"), (False, 0.0, ""), (True, 5.0, "")],
)
def test_a_person_is_told_once_what_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, quiet: float, said: str
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: is_terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(loop, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(loop, "QUIET_SECONDS", quiet)
    loop.run(asyncio.sleep(0.2), awaited="pve")
    assert screen.getvalue() == said
