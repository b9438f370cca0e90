"""The ratchet: what counts as code, and when a number is worse than its limit."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests import size

PYTHON = '''\
"""What it is.

Two paragraphs."""

# why
KEPT = """a text

with a blank line"""  # counts


def helper() -> None:
    """What it does."""
    if KEPT:  # a comment beside code
        print("a", \'b\')


@decorated
def test_it() -> None:
    assert KEPT
'''


def test_blank_lines_comments_and_docstrings_are_no_code_and_docstrings_are_statements() -> None:
    # KEPT (3 lines), helper (3), test_it (3); docstrings (2), KEPT, def, if, print, def, assert.
    assert size.of_python(PYTHON) == size.Size(19, 9, 8)


def test_test_functions_are_not_counted_among_the_helpers() -> None:
    assert size.of_python(PYTHON, with_tests=False) == size.Size(16, 6, 6)


def test_of_sh_and_perl_what_is_neither_blank_nor_a_comment_counts() -> None:
    assert size.of_script("#!/bin/sh\n\n# why\nset -e\n  # more\necho a # b\n") == size.Size(6, 2, 2)


def test_only_what_is_worse_than_its_limit_by_more_than_a_hundredth_is_named() -> None:
    limits = {"Go: lines": 10, "YAML: lines": 200, "lab: statements": 200, "ruff: rules": 5, "mypy: strict": 1}
    now = {"Go: lines": 12, "YAML: lines": 202, "lab: statements": 203, "ruff: rules": 6, "mypy: strict": 0}
    assert size.worse(now, limits) == [
        "Go: lines: 12 is 2 more than the limit of 10",
        "lab: statements: 203 is 3 more than the limit of 200",
        "mypy: strict: 0 is 1 less than the limit of 1",
    ]


def test_settings_and_words_may_grow() -> None:
    assert size.worse(dict.fromkeys(size.FREE, 20), dict.fromkeys(size.FREE, 10)) == []
    assert size.numbers({}, size.areas({})).keys() >= size.FREE


def test_a_limit_only_gets_better() -> None:
    limits = {"Go: lines": 10, "YAML: lines": 10, "ruff: rules": 5, "mypy: strict": 1}
    now = {"Go: lines": 12, "YAML: lines": 9, "ruff: rules": 6, "mypy: strict": 0}
    better = {"Go: lines": 10, "YAML: lines": 9, "ruff: rules": 6, "mypy: strict": 1}
    assert size.lowered(now, limits) == better
    assert size.lowered({**now, "new": 7}, limits) == {**better, "new": 7}


def test_each_number_is_printed_with_its_limit_and_the_difference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    limits = size.numbers({}, size.areas({})) | {"documents: words": 3, "YAML: lines": 4}
    (tmp_path / "size.yaml").write_text(yaml.safe_dump(limits))
    monkeypatch.setattr(size, "LIMITS", tmp_path / "size.yaml")
    monkeypatch.setattr(size, "_files", lambda: {"a.md": "five words are in it", "a.yaml": "a: 1\n"})
    assert size.main() == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["documents:", "words", "5", "3", "+2"] in rows
    assert ["YAML:", "lines", "1", "4", "-3"] in rows


def test_what_is_counted_of_the_files() -> None:
    exception = f"# {size.EXCEPTIONS[0]}"
    files = {
        "homelab/a.py": f"a = 1  {exception}\n",
        "tests/b.py": "b = 2\n",
        "lab/c.pl": "# c\nc\n",
        "d.yml": "d: 1\n\n",
    }
    numbers = size.numbers(files, size.areas(files))
    wanted = ["program: code lines", "test helpers: statements", "lab: code lines", "YAML: lines", exception]
    assert [numbers[name] for name in wanted] == [1] * len(wanted)
