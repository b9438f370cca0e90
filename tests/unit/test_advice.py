"""No message advises a command that no test has run, or that isn't on the list of those that none can run, with the reason."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from homelab import tables
from tests import advice

KNOWN: dict[str, Any] = tables.read(advice.REGISTER)
#: The program itself, which the owner runs on a PC of theirs.
OWN = (
    "pulumi ",
    "homelab docs",
    "homelab doctor ",
    "homelab init",
)
ANYWHERE = {*KNOWN["words"], *KNOWN["looks"], *KNOWN["unrun"]}
CURED = {(file, command) for file, commands in KNOWN["cures"].items() for command in commands}
CURED |= {(file, "{}") for file in KNOWN["variables"]}


@functools.cache
def said() -> set[tuple[str, str]]:
    """What messages advise: file, and command. Not on import, which each process of a run does: it reads the program's whole source."""
    return {(file, text) for file, text in advice.found_in_source() if not text.startswith(OWN)}


def test_every_command_of_a_message_is_run_by_a_test_or_has_a_reason() -> None:
    assert sorted(said() - CURED - {one for one in said() if one[1] in ANYWHERE}) == []


def test_what_is_registered_is_still_advised() -> None:
    assert sorted(CURED - said()) == []
    assert sorted(ANYWHERE - {text for _, text in said()}) == []


def test_what_is_run_instead_of_a_text_is_that_text_with_more() -> None:
    for text, run in KNOWN["looks"].items():
        assert (
            run is None or advice.is_made_of(text, run) or run.startswith(text.replace(" ID", "").partition("{}")[0])
        ), text


@pytest.mark.parametrize(
    "source",
    [
        "x = f'next: `qm frobnicate {vmid}`'",
        "x = 'see ' + '`qm frobnicate 1`'",
        "x = ('in two '\n '`qm frobnicate` lines')",
    ],
)
def test_a_new_command_in_python_is_seen(source: str) -> None:
    import ast

    found = [one for text in advice._of_python(ast.parse(source)) for one in advice.advised(text)]
    assert len(found) == 1 and found[0].startswith("qm frobnicate")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (r'  die "x" "y" "z" "try \`qm frobnicate $VMID\`"', ["qm frobnicate {}"]),
        (r"""  NEXT='try `qm frobnicate`'""", ["qm frobnicate"]),
        (r'  NEXT="\`qm frobnicate ${ids[*]}\` on $(hostname)"', ["qm frobnicate {}"]),
        ("# `a comment`", []),
        ("  x=1 # `a comment`", []),
    ],
)
def test_a_new_command_in_bash_is_seen(line: str, found: list[str]) -> None:
    assert [one for text in advice._of_bash(line) for one in advice.advised(text)] == found
