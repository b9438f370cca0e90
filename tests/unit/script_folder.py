"""Another folder in the place of remote_scripts/."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from homelab.remote import scripts

_KEPT = (scripts._text, scripts._code, scripts._program, scripts.file)


@contextlib.contextmanager
def scripts_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Scripts are composed of what is in ``folder``."""
    with monkeypatch.context() as patch:
        patch.setattr(scripts, "FOLDER", folder)
        for kept in _KEPT:
            kept.cache_clear()
        try:
            yield
        finally:
            for kept in _KEPT:
                kept.cache_clear()
