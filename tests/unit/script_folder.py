"""Another folder in the place of remote_scripts/."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from homelab.remote import scripts


@contextlib.contextmanager
def scripts_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files that are installed on hosts are those in ``folder``."""
    with monkeypatch.context() as patch:
        patch.setattr(scripts, "FOLDER", folder)
        scripts.file.cache_clear()
        try:
            yield
        finally:
            scripts.file.cache_clear()
