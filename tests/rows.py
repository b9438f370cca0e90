"""Many rows of one cheap function as one test, which names all that failed: pytest takes 5 ms of processor time for a test, whatever it does."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest


def check_rows(check: Callable[..., object], rows: Iterable[tuple[Any, ...]]) -> None:
    """Check each row.

    :raises AssertionError: names all rows that failed, with what was wrong.
    """
    problems = {}
    for row in rows:
        try:
            check(*row)
        except (AssertionError, pytest.fail.Exception) as problem:
            problems[" ".join(map(str, row))] = str(problem)
        except Exception as problem:
            place = traceback.extract_tb(problem.__traceback__)[-1]
            message = f"{type(problem).__name__}: {problem} ({Path(place.filename).name}, line {place.lineno})"
            problems[" ".join(map(str, row))] = message
    # pytest explains no assertion of this file.
    assert not problems, "\n".join(f"{name}: {problem}" for name, problem in problems.items())


def each(names: Iterable[str]) -> Callable[[Callable[[str], None]], Callable[[], None]]:
    """A check of a name, as one test of all of these."""

    def test_of(check: Callable[[str], None]) -> Callable[[], None]:
        def test() -> None:
            check_rows(check, [(name,) for name in names])

        test.__doc__ = check.__doc__
        return test

    return test_of
