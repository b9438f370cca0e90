"""homelab/remote/scripts.py: what is sent to a host."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from homelab.remote import agent, scripts
from tests.unit.script_folder import scripts_of


@pytest.mark.parametrize("value", ["plain", "it's", '"; rm -rf / #', "$(id)", "two\nlines", "--", ""])
def test_every_value_arrives_as_one_quoted_word(value: str) -> None:
    first = scripts.compose("in_container.sh", VALUE=value).removesuffix(scripts.compose("in_container.sh"))
    assert shlex.split(first) == [f"VALUE={value}"]


def test_root_runs_bash_itself_and_others_through_sudo_without_a_password() -> None:
    assert scripts.command("apply", "root") == "bash -s -- apply"
    assert scripts.command("apply", "admin") == "sudo -n bash -s -- apply"
    at_once = scripts.command("read_system", "root", at_once=True)
    assert shlex.split(at_once)[:2] == ["bash", "-c"] and shlex.split(at_once)[3:] == ["bash", "read_system"]
    assert scripts.command("read_system", "admin", at_once=True) == f"sudo -n {at_once}"


def test_a_new_generation_changes_the_text_and_nothing_else() -> None:
    one, two = (scripts.compose("in_container.sh", GENERATION=number) for number in "12")
    assert one != two and one.replace("GENERATION=1", "GENERATION=2") == two


def test_a_checkout_with_windows_line_ends_sends_unix_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in scripts.FOLDER.rglob("*.sh"):
        copy = tmp_path / path.relative_to(scripts.FOLDER)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    ours = scripts.compose("in_container.sh")
    with scripts_of(tmp_path, monkeypatch):
        assert scripts.compose("in_container.sh") == ours


@pytest.mark.parametrize("name", ["x; id; y", "path", "X Y", "X=1\nid\nY", "", "1"])
def test_no_name_of_an_argument_becomes_a_part_of_the_script(name: str) -> None:
    with pytest.raises(ValueError, match="no names of arguments"):
        scripts.compose("in_container.sh", **{name: "1"})


@pytest.mark.parametrize("owner", ["..", "a/b", "", ".", "a b"])
def test_scripts_are_kept_in_a_folder_of_their_own(owner: str) -> None:
    with pytest.raises(ValueError, match="no owner of scripts"):
        agent.place(owner)
