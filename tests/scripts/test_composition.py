"""What is sent of every script, held to shfmt's reading of it: it does what is written, and is that alone."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from homelab import tables
from homelab.remote import scripts
from homelab.remote.bash_source import _chunks, functions_of, stripped
from tests.rows import each
from tests.scripts.conftest import Folder
from tests.unit.script_folder import scripts_of

SHFMT = str(Path(sys.executable).parent / "shfmt")
SCRIPTS = sorted(path.name for path in scripts.FOLDER.glob("*.sh"))
PARTS = sorted(path.relative_to(scripts.FOLDER).as_posix() for path in (scripts.FOLDER / "lib").rglob("*.sh"))


# A function, or a variable that is set at the margin or for all.
_DEFINED = re.compile(r"^(?:declare -A |export )?([A-Za-z_]\w*)(?==|\(\) |$)|\bdeclare -gA (\w+)=", re.MULTILINE)

# A line that is one, or what follows code, but for the two that say something to whoever composes a script. In a text that is written to the host it is none.
_COMMENT = re.compile(
    r"(?P<text><<'?(\w+)'?\n(?s:.*?)^\2$)|^ *#(?!!| Needs: ).*$|(?<= )#(?: [^\n\"']*)?$", re.MULTILINE
)


def shfmt(*arguments: str, text: str = "") -> str:
    # Short runs: no garbage to look for, nothing for a second processor.
    environment = {**os.environ, "GOGC": "off", "GOMAXPROCS": "1"}
    command = [SHFMT, "--language-dialect", "bash", *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def nodes(inside: Any) -> Iterator[dict[str, Any]]:
    """Every node of a tree, in no order, but for those that say where another one stands."""
    left = [inside]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            if "Offset" not in one:
                yield one
                left += one.values()
        elif isinstance(one, list):
            left += one


def parts_of(word: Any) -> Any:
    """Without comments, and without where things stand."""
    if isinstance(word, list):
        return [parts_of(child) for child in word]
    if not isinstance(word, dict):
        return word
    return {key: parts_of(value) for key, value in word.items() if not (isinstance(value, dict) and "Offset" in value)}


def meanings(texts: dict[str, str], folder: Path) -> dict[str, str]:
    """Texts of files as shfmt writes them shortest: without comments, blank lines and margins."""
    for name, text in texts.items():
        folder.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
        folder.joinpath(name).write_text(text.partition("\n")[2] if text.startswith("#!") else text, encoding="utf-8")
    shfmt("--minify", "--write", str(folder))
    return {name: (folder / name).read_text(encoding="utf-8") for name in texts}


@dataclass(frozen=True)
class Command:
    """A call: the parts of its first word, and all words, in which `$` stands for what isn't written out."""

    first: list[dict[str, Any]]
    words: list[str]


@dataclass
class Names:
    """What a text calls, as far as it is written out; which variables it reads without another value for none; what it names."""

    called: set[str] = field(default_factory=set)
    read: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)

    def add(self, other: Names) -> None:
        self.called |= other.called
        self.read |= other.read
        self.written |= other.written


@dataclass(frozen=True)
class Reading:
    """``functions``: names and texts of those at the margin, in their order; ``variables``: in capitals, that it sets for all, and by which functions
    (empty: at the margin)."""

    functions: list[tuple[str, str, Names]]
    has_comments: bool
    commands: list[Command]
    names: Names
    variables: dict[str, set[str]]


@functools.cache
def reading(text: str) -> Reading:
    """shfmt's. Its tree takes a hundred times the text's memory: what tests ask of it is kept instead."""
    tree, encoded = shfmt("--to-json", text=text), text.encode()
    whole = json.loads(tree)
    # A quotation mark within a string of the JSON has a backslash before it.
    found = Reading([], '"Hash": {' in tree, [], Names(), {})
    for statement in whole.get("Stmts", []):
        names = _names(statement, encoded, found.commands)
        found.names.add(names)
        is_function = statement["Cmd"]["Type"] == "FuncDecl"
        for variable in set_for_all(statement, is_function):
            found.variables.setdefault(variable, set()).add(statement["Cmd"]["Name"]["Value"] if is_function else "")
        if is_function:
            written = encoded[statement["Pos"]["Offset"] : statement["End"]["Offset"]].decode()
            found.functions.append((statement["Cmd"]["Name"]["Value"], written, names))
    return found


def _names(statement: dict[str, Any], text: bytes, commands: list[Command]) -> Names:
    """Of a statement; its calls are added to those that were found before."""
    found = Names()
    for node in nodes(statement):
        kind = node.get("Type")
        if kind == "CallExpr" and node.get("Args"):
            words = [_written(word) for word in node["Args"]]
            parts = node["Args"][0]["Parts"]
            commands.append(Command(parts_of(parts), words))
            found.called |= {parts[0]["Value"]} if [part["Type"] for part in parts] == ["Lit"] else set()
        elif kind == "ParamExp":
            at = node["Param"]["End"]["Offset"]
            found.read |= set() if re.match(rb":?[-+=?]", text[at : at + 2]) else {node["Param"]["Value"]}
        if "Value" in (node.get("Name") or {}):
            found.written.add(node["Name"]["Value"])
        if isinstance(node.get("N"), dict):
            found.written |= {*_OPENED.findall(node["N"]["Value"])}
    return found


def set_for_all(statement: dict[str, Any], is_function: bool) -> set[str]:
    """Names in capitals that a statement sets, but for a function's own. (Others are what a function's callers have.)"""
    found: set[str] = set()
    own: set[str] = set()
    for node in nodes(statement):
        kind, words = node.get("Type"), [_written(word) for word in node.get("Args") or [] if "Parts" in word]
        if kind == "DeclClause":
            names = {one["Name"]["Value"] for one in node["Args"] if one.get("Name")}
            options = [_written(one["Value"]) for one in node["Args"] if one.get("Value") and not one.get("Name")]
            is_own = is_function and node["Variant"]["Value"] in ("local", "declare") and "g" not in "".join(options)
            (own if is_own else found).update(names)
        elif kind == "CallExpr" and not words:
            found |= {one["Name"]["Value"] for one in node.get("Assigns") or [] if one.get("Name")}
        elif kind == "CallExpr" and words[0] in ("read", "mapfile", "printf"):
            found |= {word for before, word in pairwise(words) if words[0] != "printf" or before == "-v"}
        elif kind == "WordIter":
            found.add(node["Name"]["Value"])
        if isinstance(node.get("N"), dict):
            found |= {*_OPENED.findall(node["N"]["Value"])}
    return {name for name in found - own if re.fullmatch("[A-Z][A-Z0-9_]*", name)}


def _written(word: dict[str, Any]) -> str:
    return "".join(part.get("Value", "$") for part in word["Parts"])


@functools.cache
def _known() -> dict[str, Names]:
    """The functions of all files, by their texts."""
    return {text: names for name in (*SCRIPTS, *PARTS) for _, text, names in reading(scripts._code(name)).functions}


def names_of(sent: str) -> Names:
    """Of a script as it is sent. Its functions are in files that were read; only what else it has is read anew."""
    found, rest, known = Names(), "", _known()
    for name, text in _chunks(sent.splitlines(keepends=True)):
        if name and text.rstrip("\n") in known:
            found.add(known[text.rstrip("\n")])
        else:
            rest += text
    found.add(reading(rest).names)
    return found


# Rules for every file are a test each, not one for every file: what was read of all files is there for all rules then.
@each([*SCRIPTS, *PARTS])
def test_no_comment_of_a_file_is_sent(name: str) -> None:
    sent = scripts._code(name)
    assert _COMMENT.search(scripts._text(name)) and not reading(sent).has_comments
    assert stripped(sent) == sent


def test_without_its_comments_a_file_means_the_same(tmp_path: Path) -> None:
    written = {name: scripts._text(name) for name in (*SCRIPTS, *PARTS)}
    sent = {name: scripts._code(name) for name in written}
    assert meanings(sent, tmp_path / "sent") == meanings(written, tmp_path / "written")


@each([*SCRIPTS, *PARTS])
def test_functions_are_found_as_bash_has_them(name: str) -> None:
    code = scripts._code(name)
    assert functions_of(code) == [function for function, _, _ in reading(code).functions]


@functools.cache
def ours() -> set[str]:
    """The functions of all files."""
    return {function for name in (*SCRIPTS, *PARTS) for function in functions_of(scripts._code(name))}


@each(SCRIPTS)
def test_what_a_script_calls_is_sent_with_it(name: str) -> None:
    sent = scripts.compose(name)
    assert names_of(sent).called & ours() - {*functions_of(sent)} == set()


def together(groups: Iterable[set[str]]) -> list[set[str]]:
    """Those that have something in common are one."""
    found: list[set[str]] = []
    for group in groups:
        common = [one for one in found if one & group]
        found = [one for one in found if one not in common] + [group.union(*common)]
    return found


def test_no_two_files_of_a_script_set_the_same_variable_by_chance() -> None:
    """One would lose what it keeps there, without a word: a lock's number, a container's drift. Which do it knowingly: shared_variables.yaml."""
    found: dict[str, list[set[str]]] = {}
    for name in SCRIPTS:
        sent, by = {*functions_of(scripts.compose(name))}, dict[str, set[str]]()
        for file in (*(f"lib/{part}.sh" for part in scripts.library_of(name)), name):
            for variable, functions in reading(scripts._code(file)).variables.items():
                if functions & (sent | {""}):
                    by.setdefault(variable, set()).add(file.removesuffix(".sh"))
        for variable, files in by.items():
            if len(files) > 1:
                found.setdefault(variable, []).append(files)
    known = tables.read(Path(__file__).with_name("shared_variables.yaml"))
    groups = {(one, *sorted(group)) for one, all_of_it in found.items() for group in together(all_of_it)}
    assert groups ^ {(one, *group) for one, written in known.items() for group in written} == set()


def twice_defined(name: str) -> list[str]:
    """Functions of a program that two of its files define: the later one is called wherever the earlier one is meant."""
    texts = [scripts._code(f"lib/{part}.sh") for part in scripts.library_of(name)]
    every = [function for text in (*texts, scripts._code(name)) for function in functions_of(text)]
    return sorted({function for function in every if every.count(function) > 1})


def test_no_function_hides_another_one_of_its_program() -> None:
    assert {name: twice for name in SCRIPTS if (twice := twice_defined(name))} == {}


@pytest.mark.parametrize("name", ["in_container.sh", "lib/run_dir.sh"])
def test_a_function_that_hides_another_one_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    shutil.copytree(scripts.FOLDER, tmp_path, dirs_exist_ok=True)
    with (tmp_path / name).open("a") as file:
        file.write("\nowns_run_dir() { :; }\n")
    with scripts_of(tmp_path, monkeypatch):
        assert twice_defined("in_container.sh") == ["owns_run_dir"]


# What bash sets, and what a host's own files may.
_OF_BASH = {
    "BASHPID",
    "BASH_COMMAND",
    "BASH_REMATCH",
    "BASH_SOURCE",
    "EPOCHREALTIME",
    "EPOCHSECONDS",
    "LINENO",
    "PATH",
    "PPID",
    "PWD",
    "SECONDS",
    "IFS",
}
_OF_HOST = {"GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT"}


@each(SCRIPTS)
def test_what_a_script_reads_is_sent_with_it_or_is_an_argument(name: str) -> None:
    """Under `set -u` anything else would end it. Variables that live in a function alone have small letters."""
    sent = scripts.compose(name)
    names = names_of(sent)
    given = {*names.written, *_VARIABLE.findall(" ".join(_INTO.findall(sent))), *_OF_BASH, *_OF_HOST}
    arguments = {*_VARIABLE.findall(scripts._text(name).partition("\n\n")[0])}
    if "packages/running" in scripts.library_of(name):
        arguments |= {*_VARIABLE.findall(scripts._text("lib/packages.sh").partition("\n\n")[0])}
    assert {*_VARIABLE.findall(" ".join(names.read))} - given - arguments == set()


_VARIABLE = re.compile(r"\b[A-Z][A-Z0-9_]+\b")
_OPENED = re.compile(r"^\{(\w+)\}$")
_INTO = re.compile(r"(?:\bread|\bmapfile|\bexec \{)[^\n|;<]*")


@each(PARTS)
def test_functions_that_a_part_calls_are_in_parts_it_needs_or_takes(name: str) -> None:
    header = scripts._text(name).partition("\n\n")[0]
    elsewhere = {*re.findall(r"[A-Za-z_]+", header.partition("akes")[2])}
    needed = [scripts._code(f"lib/{part}.sh") for part in scripts.library_of(name)]
    defined = {function for text in (*needed, scripts._code(name)) for function in functions_of(text)}
    assert reading(scripts._code(name)).names.called & ours() - elsewhere - defined == set()


@each(PARTS)
def test_a_part_says_what_it_gives(name: str) -> None:
    header = scripts._text(name).partition("\n\n")[0]
    assert header.splitlines()[1].startswith("# ") and len(header.splitlines()[1]) > 10
    given = {*functions_of(scripts._code(name))}
    assert not given or given & {*re.findall(r"\b(\w+)\b", header)}


# In lines. From some 150 on a file should be two (remote_scripts/README.md); one that is this long has to be.
_MOST = 190


def test_a_script_is_short_enough_to_be_read_at_once() -> None:
    lines = {name: len(scripts._text(name).splitlines()) for name in (*SCRIPTS, *PARTS)}
    assert {name: count for name, count in lines.items() if count > _MOST} == {}


def test_a_function_of_the_library_has_a_name_of_its_own() -> None:
    found = [function for name in PARTS for function in functions_of(scripts._code(name))]
    assert len(found) == len({*found})


@each([*SCRIPTS, *PARTS])
def test_every_part_that_a_header_says_is_needed_is(name: str) -> None:
    named = re.search(r"^# Needs: (.+)$", scripts._text(name), re.MULTILINE)
    words = {*re.findall(r"\w+", scripts._code(name))}
    for part in named[1].split(", ") if named and words else ():
        # One without code stands for those that it needs.
        given = [scripts._code(f"lib/{one}.sh") for one in (part, *scripts.library_of(f"lib/{part}.sh"))]
        found = [_DEFINED.findall(text) for text in given]
        assert words & {one or other for names in found for one, other in names}, part


# -- a file's main ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_from_standard_input_and_as_a_file_but_not_sourced(folder: Folder, name: str) -> None:
    file = folder.write("script", scripts.compose(name))
    more = f"{scripts.compose(name)}echo what follows is not read\n"
    done = folder.bash('bash "$1" pwd', str(file), parts=())
    assert done.stdout == f"{Path.cwd()}\n", done.stderr
    done = folder.bash(more, "pwd", parts=())
    assert (done.returncode, done.stdout) == (0, f"{Path.cwd()}\n")
    done = folder.sourced(name, "declare -F main; echo sourced")
    assert (done.returncode, done.stdout) == (0, "main\nsourced\n"), done.stderr


@each([*SCRIPTS, *PARTS])
def test_no_name_of_a_function_is_put_together(name: str) -> None:
    """By its parts nobody would know that it is called."""
    for command in reading(scripts._code(name)).commands:
        parts = [part for word in command.first for part in word.get("Parts", [word])]
        text = "".join(part.get("Value", "") for part in parts)
        of_root = parts[0].get("Param", {}).get("Value") == "ROOT"
        assert len(parts) == 1 or of_root or "/" in text, text


def test_another_comment_or_blank_line_in_every_file_changes_nothing_that_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def everything() -> dict[str, str]:
        return {name: scripts.compose(name) for name in SCRIPTS}

    before = everything()
    folder = tmp_path / "folder"
    shutil.copytree(scripts.FOLDER, folder)
    written = {name: scripts._text(name) for name in (*SCRIPTS, *PARTS)}
    changed = {
        name: _COMMENT.sub(lambda found: found["text"] or "# it's \"another\n", text) for name, text in written.items()
    }
    assert meanings(changed, tmp_path / "changed") == meanings(written, tmp_path / "written")
    for name, text in changed.items():
        (folder / name).write_text(text, encoding="utf-8")
    with scripts_of(folder, monkeypatch):
        assert scripts._text("lib/files/ours.sh").count("it's \"another") > 10
        assert everything() == before
