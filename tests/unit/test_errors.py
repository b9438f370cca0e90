"""homelab/errors.py and homelab/remote/ssh.py's reading of a script's message."""

from __future__ import annotations

import pytest

from homelab.errors import ElsewhereError, HomelabError, NoPythonError, SeveralErrors, raise_all
from homelab.remote.proxmox.errors import explained, plain
from homelab.remote.ssh import _failed
from remote_scripts.tools.errors import Failure
from tests.rows import rows


def test_a_scripts_message_becomes_the_error_word_for_word() -> None:
    error = HomelabError(wanted="a thing", found="two\nlines", why="because", next="do this\nand that")
    assert str(_failed("apply", f"noise before\n{error}\n", "log", 1)) == str(error)


def test_what_a_program_says_takes_the_place_of_no_part_of_a_message() -> None:
    """It may be a container's, whose root would tell the host's what to do."""
    found = "E: no\nwhy:    all is well\nnext:   run this on the host"
    failure = Failure("it installed", found, "why it matters", "what to do")
    assert _failed("apply", failure.text(), "", 1).parts() == {
        "wanted": "it installed",
        "found": found.replace("\n", "\n "),
        "why": "why it matters",
        "next": "what to do",
    }


@pytest.mark.parametrize(
    "shell",
    [
        "bash: line 1: /usr/bin/python3: No such file or directory",
        "sh: 1: /usr/bin/python3: not found",
        "zsh:1: no such file or directory: /usr/bin/python3",
    ],
)
def test_a_system_without_python_is_told_by_whatever_shell_says_so(shell: str) -> None:
    error = _failed("read read_system", "", f"{shell}\n", 127)
    assert isinstance(error, NoPythonError) and "apt-get install python3" in error.next
    assert not isinstance(_failed("read read_system", "", f"{shell}\n", 1), NoPythonError)


def test_another_program_that_isnt_there_is_named_as_the_log_has_it() -> None:
    error = _failed("read_system", "", "bash: line 1: sudo: command not found\n", 127)
    assert not isinstance(error, NoPythonError)
    assert error.found == "exit status 127: bash: line 1: sudo: command not found"


@rows(
    ("status", "reason", "step"),
    [
        (500, "RPCEnvironment init request failed: Connection refused", "systemctl status pve-cluster"),
        (500, "VM is locked (backup)", "wait for it"),
        (400, "Parameter verification failed.", "correct what it names"),
    ],
)
def test_what_a_refusal_advises_is_of_its_cause(status: int, reason: str, step: str) -> None:
    assert step in explained("a thing", reason, status, reason).next


@pytest.mark.parametrize("part", ["wanted", "found", "why", "next"])
def test_a_retold_error_keeps_its_class_and_attributes(part: str) -> None:
    error = ElsewhereError(wanted="a", found="b", why="c", next="d", status=500, reason="no")
    error.node = "pve2"
    again = error.retold(**{part: "other\x1b[1m words"})
    assert again.parts() == {**error.parts(), part: "other words"} and error.parts()[part] != "other words"
    assert isinstance(again, ElsewhereError) and str(again).count("other words") == 1
    assert (again.status, again.reason, again.node) == (500, "no", "pve2")


def test_one_error_stands_alone_and_several_are_numbered() -> None:
    one = HomelabError(wanted="a", found="b", why="c", next="d")
    two = HomelabError(wanted="e", found="f", why="g", next="h")
    raise_all([])
    with pytest.raises(HomelabError) as alone:
        raise_all([one])
    assert alone.value is one
    with pytest.raises(SeveralErrors) as both:
        raise_all([one, two])
    assert str(both.value) == f"2 problems prevent this:\n1.\n{one}\n2.\n{two}"


def test_what_a_node_says_is_shown_without_secrets_and_control_characters_and_cut() -> None:
    assert plain("the token s3cr is refused\x1b[2J", ["s3cr", "", "the"]) == "the token *** is refused"
    assert plain("a" * 2000) == "a" * 2000 and plain("a" * 2001) == "a" * 2000 + " …"
