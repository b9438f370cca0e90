"""Shared by all tiers: where things are, what the tests may rely on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine import install

PROJECT = Path(__file__).resolve().parent.parent
SHARED = PROJECT.parent / "shared"


def shared(*parts: str) -> Path:
    """Data about real machines and real services, read where it lies; the test is skipped where it isn't."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(
            f"{Path('..', 'shared', *parts)} is not there: captures of real machines are kept beside the project"
        )
    return path


@pytest.fixture(scope="session")
def engine() -> install.Engine:
    return install.ensure(os.environ | {"PULUMI_HOME": str(install.cache_folder() / "home")})
