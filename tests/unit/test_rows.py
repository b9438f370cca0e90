"""Rows of a table, checked as one test: each row that fails is named, whatever it fails with."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from tests.rows import check_rows, rows

TABLE = {"a": 1, "b": 0}


def test_every_failing_row_is_named_and_an_error_with_its_type_and_place() -> None:
    def quotient(name: str) -> None:
        assert 1 / TABLE[name] == 1, "not one"

    with pytest.raises(AssertionError) as failed:
        check_rows(quotient, [("lost",), ("a",), ("b",)])
    line = quotient.__code__.co_firstlineno + 1
    assert str(failed.value).splitlines() == [
        f"lost: KeyError: 'lost' (test_rows.py, line {line})",
        f"b: ZeroDivisionError: division by zero (test_rows.py, line {line})",
    ]


def test_a_row_that_pytest_fails_is_named_too() -> None:
    with pytest.raises(AssertionError, match="^x: no\ny: no$"):
        rows("name", ["x", "y"])(lambda name: pytest.fail("no"))()


@rows(("name", "number"), [("b", 0), ("a", 1)], ids=["the one", "the other"])
def tables_row(name: str, number: int, *, tmp_path: Path) -> None:
    assert (TABLE[name], tmp_path.is_dir()) == (number, True)


def test_a_row_gives_the_arguments_that_it_names_and_fixtures_the_others(tmp_path: Path) -> None:
    assert [*inspect.signature(tables_row).parameters] == ["tmp_path"]
    tables_row(tmp_path=tmp_path)
    with pytest.raises(AssertionError, match="(?s)^the one: .*\nthe other: "):
        tables_row(tmp_path=tmp_path / "none")


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_tests_ends_them(end: type[BaseException]) -> None:
    def interrupted() -> None:
        raise end

    with pytest.raises(end):
        check_rows(interrupted, [()])
