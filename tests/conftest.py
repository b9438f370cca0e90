"""Shared by all tiers: where things are, what the tests may rely on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import install
from lab.commands import CommandServer

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


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`-n auto`. A test with the engine waits, for boots and for the engine's own processes, about as long as it computes; memory
    (half a gigabyte a worker) sets the limit on large machines."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(2 * processors, processors + 4)


@pytest.fixture(scope="session", autouse=True)
def command_server() -> Iterator[None]:
    """For the lab's hosts without a daemon: their commands start in a tenth of the time."""
    with CommandServer():
        yield


@pytest.fixture(scope="session")
def engine() -> install.Engine:
    return install.ensure(os.environ | {"PULUMI_HOME": str(install.cache_folder() / "home")})
