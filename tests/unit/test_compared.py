"""docs/compared.md: it is what its data say, each test that it names is there, and nothing is said without its ground."""

from __future__ import annotations

import ast
from functools import cache

import pytest

from tests.compared import DOCUMENT, Cell, Row, load, written
from tests.conftest import PROJECT
from tests.rows import failing

DATA = load()
ROWS = [row for rows in DATA.groups.values() for row in rows]
CELLS = {f"{row.feature}: {key}": cell for row in ROWS for key, cell in row.peers.items()}


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


def test_the_page_is_what_the_data_say() -> None:
    page = DOCUMENT.read_text(encoding="utf-8")
    assert page == written(page), "run `make docs`"


def test_each_feature_stands_once_and_each_group_in_both_parts_of_the_page() -> None:
    names = [row.feature for row in ROWS]
    assert sorted(set(names)) == sorted(names)
    page = DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in names if page.count(f"\n| {name} |") != 2] == []


def test_what_is_said_of_this_program_is_shown_by_tests_or_explained() -> None:
    def check(row: Row) -> None:
        assert [test for test in row.tests if missing(test)] == []
        if row.homelab in ("yes", "partly"):
            assert row.tests, "which test shows it?"
        if row.homelab != "yes":
            assert row.note.endswith("."), "what is lacking, in a sentence"
        assert row.homelab != "?", "we know what we have"

    assert failing(check, [(row,) for row in ROWS]) == {}


def ground(cell: Cell) -> str:
    """What a cell lacks."""
    if unknown := [source for source in cell.sources if source not in DATA.sources]:
        return f"no such source: {unknown}"
    if cell.has in ("yes", "partly") and not cell.sources:
        return "where was it read?"
    if cell.has == "partly" and not cell.note:
        return "which part?"
    return "it is known, then" if cell.has == "?" and cell.sources else ""


def test_what_is_said_of_others_was_read_somewhere() -> None:
    assert {where: ground(cell) for where, cell in CELLS.items() if ground(cell)} == {}


@pytest.mark.parametrize(
    ("cell", "lacks"),
    [
        (Cell("yes", (), ""), "where was it read?"),
        (Cell("partly", ("px-vm",), ""), "which part?"),
        (Cell("no", ("never",), ""), "no such source: ['never']"),
        (Cell("?", ("px-vm",), ""), "it is known, then"),
        (Cell("no", ("px-vm",), "looked at"), ""),
        (Cell("?", (), ""), ""),
    ],
)
def test_a_cell_without_its_ground_is_noticed(cell: Cell, lacks: str) -> None:
    assert ground(cell) == lacks


def test_nothing_is_a_source_that_nobody_names() -> None:
    assert {source for cell in CELLS.values() for source in cell.sources} == DATA.sources.keys()


BASE = "read: x\npeers: {a: {name: A, repository: o/a, what: w, version: v}}\nsources: {}\ngroups:\n- group: G\n  features:\n"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{feature: f, homelab: no}", "f: a is missing"),
        ("{feature: f, a: no}", "f: homelab is missing"),
        ("{feature: f, homelab: perhaps, a: no}", "f: homelab is perhaps"),
        ("{feature: f, homelab: no, a: nearly}", "f: a is nearly"),
        ("{feature: f, homelab: no, a: no, b: no}", "f: nobody reads b"),
    ],
)
def test_a_row_of_another_form_is_refused(row: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load(f"{BASE}  - {row}\n")


def test_a_test_that_is_gone_is_noticed() -> None:
    here = "tests/unit/test_compared.py"
    assert not missing(f"{here}::test_a_test_that_is_gone_is_noticed")
    assert missing(f"{here}::test_that_never_was")
    assert missing("tests/unit/test_that_never_was.py::test_a_test_that_is_gone_is_noticed")
    assert missing(f"{here}::missing")
