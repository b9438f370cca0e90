"""Many rows of one cheap function as one test, which names all that failed: pytest takes 5 ms of processor time for a test, whatever it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def failing(check: Callable[..., object], rows: Iterable[tuple[Any, ...]]) -> dict[str, str]:
    """What is wrong, by row."""
    found = {}
    for row in rows:
        try:
            check(*row)
        except (AssertionError, pytest.fail.Exception) as problem:
            found[" ".join(map(str, row))] = str(problem)
    return found


def each(names: Iterable[str]) -> Callable[[Callable[[str], None]], Callable[[], None]]:
    """A check of a name, as one test of all of these."""

    def test_of(check: Callable[[str], None]) -> Callable[[], None]:
        def test() -> None:
            found = failing(check, [(name,) for name in names])
            # pytest explains no assertion of this file.
            assert not found, "\n".join(f"{name}: {problem}" for name, problem in found.items())

        test.__doc__ = check.__doc__
        return test

    return test_of
