"""What pytest's processes compile of a new clone: each of them its share, instead of each of them all of it."""

from __future__ import annotations

import compileall
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from _pytest.assertion import rewrite

PROJECT = Path(__file__).resolve().parent.parent
#: Where what the tests import is.
FOLDERS = ("homelab", "components", "lab", "tests")


def compile_share(config: pytest.Config, number: int, of: int) -> None:
    """Compile what isn't yet, of the tests that are to be run and of all that they can import: share ``number`` of ``of``.

    A file that another process hasn't come to yet is compiled where it is imported, as always.
    """
    if sys.dont_write_bytecode:
        return
    asked = [Path(config.invocation_params.dir, one.partition("::")[0]) for one in config.args]
    tests = {file for one in asked for file in (one.rglob("test_*.py") if one.is_dir() else [one]) if file.is_file()}
    modules = {file for name in FOLDERS for file in Path(PROJECT, name).rglob("*.py")}
    rewritten = {*tests, *(file for file in modules if file.name == "conftest.py")}
    plain = {file for file in modules if not file.name.startswith("test_")} - rewritten
    for file in _share(rewritten, number, of):
        _rewrite(config, file)
    for file in _share(plain, number, of):
        compileall.compile_file(file, quiet=2)


def _share(files: set[Path], number: int, of: int) -> list[Path]:
    # By size, so that all of them come to an end together.
    return sorted(files, key=lambda file: (-file.stat().st_size, file))[number::of]


def _rewrite(config: pytest.Config, file: Path) -> None:
    # As pytest does when it imports a file with tests; it has no function for this alone.
    kept = rewrite.get_cache_dir(file) / f"{file.stem}{rewrite.PYC_TAIL}"
    if rewrite._read_pyc(file, kept) is None and rewrite.try_makedirs(kept.parent):
        with suppress(SyntaxError):  # pytest says which, when it imports the file
            digest, code = rewrite._rewrite_test(file, config)
            rewrite._write_pyc(config.stash[rewrite.assertstate_key], code, digest, kept)
