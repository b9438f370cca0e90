"""Many rows of one cheap function as one test, which names all that failed: pytest takes 5 ms of processor time for a test, whatever it does."""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

#: A check with a row's values, and the test of all rows that it becomes.
Test = Callable[..., None]


def check_rows(check: Callable[..., object], rows: Iterable[tuple[Any, ...]]) -> None:
    """Check each row.

    :raises AssertionError: names all rows that failed, with what was wrong.
    """
    _check_all((" ".join(map(str, row)), functools.partial(check, *row)) for row in rows)


def _check_all(checks: Iterable[tuple[str, Callable[[], object]]]) -> None:
    problems = []
    for name, check in checks:
        try:
            check()
        except (AssertionError, pytest.fail.Exception) as problem:
            problems.append(f"{name}: {problem}")
        except Exception as problem:
            place = traceback.extract_tb(problem.__traceback__)[-1]
            message = f"{type(problem).__name__}: {problem} ({Path(place.filename).name}, line {place.lineno})"
            problems.append(f"{name}: {message}")
    # pytest explains no assertion of this file.
    assert not problems, "\n".join(problems)


def rows(
    names: str | Sequence[str], values: Iterable[Any], ids: Callable[[Any], object] | Sequence[str] = str
) -> Callable[[Test], Test]:
    """As `pytest.mark.parametrize`, but one test of all rows: for what is cheap, and where no row leaves the next one anything.

    :param names: the check's arguments that a row has. The others are fixtures, the same for all rows.
    :param values: each row, or its only value.
    :param ids: what a failing row is called: a name for each, or a function of each value.
    """
    arguments = [name.strip() for name in names.split(",")] if isinstance(names, str) else [*names]
    table = [(value,) if len(arguments) == 1 else tuple(value) for value in values]
    named = [" ".join(str(ids(value)) for value in row) for row in table] if callable(ids) else ids

    assert table, "a test without rows shows nothing"

    def test_of(check: Test) -> Test:
        @functools.wraps(check)
        def test(**fixtures: Any) -> None:
            _check_all(
                (name[:200], functools.partial(check, **fixtures, **dict(zip(arguments, row, strict=True))))
                for name, row in zip(named, table, strict=True)
            )

        signature = inspect.signature(check)
        left = [parameter for name, parameter in signature.parameters.items() if name not in arguments]
        vars(test)["__signature__"] = signature.replace(parameters=left)  # which fixtures pytest gives it
        return test

    return test_of
