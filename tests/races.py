"""Which tests depend on the order in which processes or threads run: those that start one beside themselves, or end one. They have the marker `races`.

A test has it by what it does, itself or in a function, a class or a fixture of these tests that it uses, so that none is forgotten. Which only waits until
a simulated host is as it is to be hasn't: the same comes of it in any order. Where such a moment passes, a test has the marker by hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType

import pytest

#: By these names a test starts a process or thread beside itself, or ends one.
DOING = frozenset({"Popen", "Thread", "fork", "kill", "killpg", "create_subprocess_exec"})
#: Every test of these tiers waits for processes: whole runs of the suite are what they are tried by.
WHOLE = ("e2e", "engine", "metal")
_TESTS = f"{Path(__file__).parent}/"


def mark(items: list[pytest.Item]) -> None:
    """Give the marker to those of `items` that have it."""
    known: dict[object, bool] = {}
    found: dict[object, bool] = {}  # of a test's function, which has many rows
    for item in items:
        function = getattr(item, "function", None)
        if function not in found:
            found[function] = item.path.parent.name not in WHOLE and _races(function, known)
        if found[function]:
            item.add_marker(pytest.mark.races)


def _races(one: object, known: dict[object, bool]) -> bool:
    function = inspect.unwrap(one) if callable(one) else one  # a fixture is its function, wrapped
    if isinstance(function, type):
        return any(_races(part, known) for part in vars(function).values() if isinstance(part, FunctionType))
    if not isinstance(function, FunctionType) or not function.__code__.co_filename.startswith(_TESTS):
        return False
    if function not in known:
        known[function] = False  # while it is looked at: functions may call each other
        names = {*_names(function.__code__), *inspect.signature(function).parameters}
        used = {name: function.__globals__.get(name) for name in names}
        # A function of the tests' own may be called `kill`, too.
        doing = (name for name in DOING & names if not isinstance(used[name], FunctionType))
        known[function] = any(doing) or any(_races(each, known) for each in used.values())
    return known[function]


def _names(code: CodeType) -> Iterator[str]:
    """What a function's text names, with the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
