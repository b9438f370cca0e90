"""Rows of a table, checked as one test: each row that fails is named, whatever it fails with."""

from __future__ import annotations

import pytest

from tests.rows import check_rows, each

TABLE = {"a": 1, "b": 0}


def quotient(name: str) -> None:
    assert 1 / TABLE[name] == 1, "not one"


def test_every_failing_row_is_named_and_an_error_with_its_type_and_place() -> None:
    with pytest.raises(AssertionError) as failed:
        check_rows(quotient, [("lost",), ("a",), ("b",)])
    line = quotient.__code__.co_firstlineno + 1
    assert str(failed.value).splitlines() == [
        f"lost: KeyError: 'lost' (test_rows.py, line {line})",
        f"b: ZeroDivisionError: division by zero (test_rows.py, line {line})",
    ]


def test_a_row_that_pytest_fails_is_named_too() -> None:
    with pytest.raises(AssertionError, match="^x: no\ny: no$"):
        each(["x", "y"])(lambda _: pytest.fail("no"))()


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_tests_ends_them(end: type[BaseException]) -> None:
    def interrupted() -> None:
        raise end

    with pytest.raises(end):
        check_rows(interrupted, [()])
