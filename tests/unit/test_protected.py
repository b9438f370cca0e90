"""The count of protected tests: by name, wherever they are."""

from __future__ import annotations

from tests.protected import counted, lost, rows

IDS = [
    "tests/lab/test_a.py::test_x[1]",
    "tests/lab/test_a.py::test_x[b::c]",
    "tests/unit/test_b.py::test_x",
    "9 tests collected",
]
CASES = counted(IDS)


def test_cases_are_counted_by_the_names_of_file_and_function() -> None:
    assert CASES == {("test_a.py", "test_x"): 2, ("test_b.py", "test_x"): 1}


def test_what_has_fewer_cases_or_is_gone_is_lost_and_what_has_moved_or_grown_is_not() -> None:
    assert lost({("test_a.py", "test_x"): 1, ("test_b.py", "test_x"): 1, ("test_moved.py", "test_x"): 2}, CASES) == []
    fewer = {("test_a.py", "test_x"): 3, ("test_b.py", "test_x"): 2, ("test_a.py", "test_gone"): 1}
    assert lost(fewer, CASES) == [("test_a.py", "test_x", 2), ("test_b.py", "test_x", 1), ("test_a.py", "test_gone", 0)]


def test_values_of_a_table_are_counted() -> None:
    assert rows({"a": [1, {"b": "text", "c": None}], "d": {"e": ["x", "y"]}}) == 5
