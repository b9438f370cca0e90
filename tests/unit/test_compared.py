"""docs/compared.yaml and docs/claims.yaml: each test that they name is there."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest
import yaml

from tests.compared import DATA, Row, load
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


def test_each_feature_stands_once() -> None:
    names = [row.feature for row in ROWS]
    assert sorted(set(names)) == sorted(names)


def test_each_claim_names_the_tests_that_show_it() -> None:
    claims = yaml.safe_load(DATA.with_name("claims.yaml").read_text(encoding="utf-8"))
    assert [
        claim for claim, shown_by in claims.items() if not re.match("(agent|e2e|lab|metal|simulator|unit)\\b", shown_by)
    ] == []
    named = re.findall(r"tests/[\w/]+\.\w+", " ".join(claims.values()))
    assert named and [path for path in named if not (PROJECT / path).exists()] == []


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
