"""The lines of bash and sh on hosts, which may only fall (ADR 33)."""

from __future__ import annotations

from homelab.remote.scripts import FOLDER


def test_there_is_no_new_bash() -> None:
    # Lowered by whoever takes a script away.
    most = 576
    assert sum(len(path.read_text().splitlines()) for path in FOLDER.rglob("*.sh")) <= most
