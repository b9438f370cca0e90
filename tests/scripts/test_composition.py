"""What is sent of every script, held to shfmt's reading of it: it does what is written, and is that alone."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from homelab.remote import scripts
from homelab.remote.bash_source import functions_of, stripped
from tests.unit.script_folder import scripts_of

SHFMT = str(Path(sys.executable).parent / "shfmt")
SCRIPTS = sorted(path.name for path in scripts.FOLDER.glob("*.sh"))
PARTS = sorted(path.relative_to(scripts.FOLDER).as_posix() for path in (scripts.FOLDER / "lib").rglob("*.sh"))


def shfmt(*options: str, text: str) -> str:
    done = subprocess.run([SHFMT, "--language-dialect", "bash", *options], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def tree(text: str) -> Any:
    """The syntax tree."""
    return json.loads(shfmt("--to-json", text=text))


def nodes(inside: Any) -> Iterator[dict[str, Any]]:
    """Every node of a tree."""
    if isinstance(inside, dict):
        yield inside
        for child in inside.values():
            yield from nodes(child)
    elif isinstance(inside, list):
        for child in inside:
            yield from nodes(child)


def comments(text: str) -> list[dict[str, Any]]:
    return [comment for node in nodes(tree(text)) for key in ("Comments", "Last") for comment in node.get(key) or []
            if "Hash" in comment]  # fmt: skip


@pytest.mark.parametrize("name", [*SCRIPTS, *PARTS])
def test_without_its_comments_a_file_means_the_same(name: str) -> None:
    written, sent = scripts._text(name), scripts._code(name)
    assert comments(written) and not comments(sent)
    assert shfmt("--minify", text=sent) == shfmt("--minify", text=written.removeprefix("#!/usr/bin/env bash\n"))
    assert stripped(sent) == sent


@pytest.mark.parametrize("name", [*SCRIPTS, *PARTS])
def test_functions_are_found_as_bash_has_them(name: str) -> None:
    statements = [statement["Cmd"] for statement in tree(scripts._code(name))["Stmts"]]
    found = [command["Name"]["Value"] for command in statements if command["Type"] == "FuncDecl"]
    assert functions_of(scripts._code(name)) == found


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_script_calls_is_sent_with_it(name: str) -> None:
    ours = {function for part in (*SCRIPTS, *PARTS) for function in functions_of(scripts._code(part))}
    sent = scripts.compose(name)
    calls = [node["Args"][0] for node in nodes(tree(sent)) if node.get("Type") == "CallExpr" and node.get("Args")]
    called = {word["Parts"][0]["Value"] for word in calls if [part["Type"] for part in word["Parts"]] == ["Lit"]}
    assert called & ours <= {*functions_of(sent)}


@pytest.mark.parametrize("name", [*SCRIPTS, *PARTS])
def test_no_name_of_a_function_is_put_together(name: str) -> None:
    """By its parts nobody would know that it is called."""
    for node in nodes(tree(scripts._code(name))):
        if node.get("Type") != "CallExpr" or not node.get("Args"):
            continue
        parts = [part for word in node["Args"][0]["Parts"] for part in word.get("Parts", [word])]
        text = "".join(part.get("Value", "") for part in parts)
        of_root = parts[0].get("Param", {}).get("Value") == "ROOT"
        assert len(parts) == 1 or of_root or "/" in text, text


def test_another_comment_or_blank_line_in_every_file_changes_nothing_that_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def everything() -> dict[str, str]:
        switch = {"cmdline": scripts.vfio_cmdline("iommu=pt"), "nodes": scripts.nvidia_nodes()}
        return {name: scripts.compose(name) for name in SCRIPTS} | switch

    before = everything()
    shutil.copytree(scripts.FOLDER, tmp_path, dirs_exist_ok=True)
    for name in (*SCRIPTS, *PARTS):
        text = scripts._text(name).encode()
        for comment in sorted(comments(scripts._text(name)), key=lambda one: -one["Hash"]["Offset"]):
            at = comment["Hash"]["Offset"]
            if not text[at:].startswith(b"#!"):
                text = text[: at + 1] + b" it's \"another" + text[text.index(b"\n", at) :] + b"\n\n"
        (tmp_path / name).write_bytes(text)
    with scripts_of(tmp_path, monkeypatch):
        assert scripts._text("lib/common.sh").count("it's \"another") > 20
        assert everything() == before
