"""docs/features.md: it is what its data say, and each test that these name is there."""

from __future__ import annotations

import ast
from functools import cache

import pytest

from tests.compared import DOCUMENT, Row, load, written
from tests.conftest import PROJECT
from tests.rows import check_rows

ROWS = [row for rows in load().values() for row in rows]


@cache
def functions_of(path: str) -> frozenset[str]:
    """The test functions of a file, without its import."""
    tree = ast.parse((PROJECT / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def missing(test: str) -> bool:
    path, _, name = test.partition("::")
    return (
        not path.startswith("tests/")
        or not (PROJECT / path).is_file()
        or not name.startswith("test_")
        or name not in functions_of(path)
    )


PAGE = DOCUMENT.read_text(encoding="utf-8")


def test_the_page_is_what_the_data_say() -> None:
    assert written(PAGE) == PAGE, "run `make docs`"


def test_each_feature_stands_once() -> None:
    names = [row.feature for row in ROWS]
    assert sorted(set(names)) == sorted(names)
    assert [name for name in names if PAGE.count(f"\n| {name} |") != 1] == []


def test_what_is_said_of_this_program_is_shown_by_tests_or_explained() -> None:
    def check(row: Row) -> None:
        assert [test for test in row.tests if missing(test)] == []
        if row.homelab in ("yes", "partly"):
            assert row.tests, "which test shows it?"
        if row.homelab != "yes":
            assert row.note.endswith("."), "what is lacking, in a sentence"

    check_rows(check, [(row,) for row in ROWS])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{feature: f, homelab: perhaps}", "f: homelab is perhaps"),
        ("{feature: f, test: no}", "f: nothing reads test"),
    ],
)
def test_a_row_of_another_form_is_refused(row: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(f"groups:\n- group: G\n  features:\n  - {row}\n")


def test_a_test_that_is_gone_is_noticed() -> None:
    here = "tests/unit/test_compared.py"
    assert not missing(f"{here}::test_a_test_that_is_gone_is_noticed")
    assert missing(f"{here}::test_that_never_was")
    assert missing("tests/unit/test_that_never_was.py::test_a_test_that_is_gone_is_noticed")
    assert missing(f"{here}::missing")
