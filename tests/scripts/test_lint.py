"""What no linter knows: arguments and their headers, paths without their prefix, output that may be cut short. shellcheck and shfmt: tests/script_lint.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from homelab.remote import scripts
from tests.script_lint import ARGUMENTS, INSTALLED, OF_PACKAGES, SOURCES


@pytest.mark.parametrize("name", ARGUMENTS)
def test_no_part_sets_a_variable_of_the_name_of_an_argument(name: str) -> None:
    """Arguments come first: a part that sets one as it is read would take its place."""
    found = set()
    for line in scripts.compose(name).splitlines():
        if re.match(r"[A-Z_]+=", line):
            found |= {
                one for one, value in re.findall(r"(?:^|(?<=\s))([A-Z_]+)=(\S*)", line) if f"{{{one}" not in value
            }
    assert not found & set(ARGUMENTS[name])


def test_every_script_has_its_composition_here() -> None:
    assert sorted(ARGUMENTS) == sorted(path.name for path in scripts.FOLDER.glob("*.sh"))


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_the_header_of_a_script_names_its_arguments(name: str) -> None:
    header = (scripts.FOLDER / name).read_text().partition("\n\n")[0]
    assert all(argument in header for argument in ARGUMENTS[name])
    assert "# Verbs: " in header
    assert ("packages.sh" in header) == ("packages/running" in scripts.library_of(name))


def test_the_header_of_the_packages_library_names_its_arguments() -> None:
    header = (scripts.FOLDER / "lib/packages.sh").read_text().partition("\n\n")[0]
    assert all(argument in header for argument in OF_PACKAGES)


@pytest.mark.parametrize("path", INSTALLED, ids=lambda path: path.name)
def test_what_is_installed_on_a_host_is_plain_sh(path: Path) -> None:
    assert path.read_text().startswith("#!/bin/sh\n")


# A program may fail after its output began, and its reader can't know; what it says goes into a variable, and all of that is written.
_READS = re.compile(r"(?<!\|)\| (re)?write_atomically\b")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_what_a_program_makes_is_whole_before_it_takes_a_files_name(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert [line for line in lines if _READS.search(line)] == []


# With `set -e`, bash 5.2 ends at `x=$(<FILE)` of a file that can't be read, also in a condition. A function or `cat` doesn't.
_READ_IN_A_CONDITION = re.compile(r"=\"?\$\(<[^)]*\).*(\|\||&&)|\b(if|while|until|!) .*=\"?\$\(<")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_condition_is_whether_a_file_can_be_read_by_bash_alone(path: Path) -> None:
    if path.match("lib/kept_scripts.sh"):
        return  # comes before `set -e`
    assert [line for line in path.read_text().splitlines() if _READ_IN_A_CONDITION.search(line)] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_path_that_a_script_opens_goes_through_root(path: Path) -> None:
    # Paths that are opened, tested or written: after a redirection, a test, or as a command's argument. Those handed to
    # put_file and its like, and texts, are prefixed there.
    opened = re.compile(
        r"""(?:[<>]\s*"?|-[edfrsx]\s+"?|\b(?:cat|rm|mv|cp|find|readlink|stat|ls)\s+(?:-\S+\s+)*"?)/(?!dev/null)"""
    )
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        code = line.split(" # ")[0]
        assert line.lstrip().startswith("#") or not opened.search(code), f"{path.name}:{number}: {line.strip()}"
