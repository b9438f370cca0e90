"""Shared by the tests on labs that run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab import Lab
from remote_scripts.layers import start_guests
from tests.kept_systems import KeptSystems


@pytest.fixture(scope="module")
def labs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Lab]]:
    """Each scenario is started once, when a test first asks for it."""
    started: dict[str, Lab] = {}
    with ExitStack() as stack:

        def lab(scenario: str) -> Lab:
            if scenario not in started:
                state = tmp_path_factory.mktemp(Path(scenario).stem) / "lab"
                started[scenario] = stack.enter_context(Lab.start(scenario, state=state))
            return started[scenario]

        yield lab


@pytest.fixture(scope="module")
def shared_lab(labs: Callable[[str], Lab], request: pytest.FixtureRequest) -> Lab:
    """One for all tests of a module, whose SCENARIO may name another."""
    return labs(getattr(request.module, "SCENARIO", "bound-by-hand"))


@pytest.fixture
def lab(shared_lab: Lab) -> Iterator[Lab]:
    """The same; the next test has it as it was."""
    yield shared_lab
    shared_lab.reset()


@pytest.fixture
def eager_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the host's own timer starts looks at once: it waits for no run, and for nothing of the boot."""
    monkeypatch.setattr(start_guests, "_GRACE_SECONDS", 0)
    monkeypatch.setattr(start_guests, "_is_boot_decided", lambda _system: True)


@pytest.fixture(scope="session")
def kept_systems(tmp_path_factory: pytest.TempPathFactory) -> KeptSystems:
    return KeptSystems(lambda: tmp_path_factory.mktemp("kept"))
