"""Pages that messages name, what README.md names and its commands, and the anchors of headings. Links between pages: `make lint`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.tables.markdown import anchors
from homelab import __version__
from homelab.cli import docs
from homelab.nvidia.checks import fitting_cudas
from homelab.nvidia.request import Request
from homelab.settings import Nvidia
from tests.conftest import PROJECT
from tests.e2e import recording


def test_a_message_that_names_a_page_names_one_that_is_there() -> None:
    page_in_text = re.compile(r"\bdocs/[a-z-]+\.md(?:#([a-z-]+))?")
    places = [PROJECT / "homelab", PROJECT / "components", PROJECT / "remote_scripts"]
    files = [path for place in places for path in place.rglob("*") if path.suffix in (".py", ".sh", ".yaml")]
    named = {
        (match[0].partition("#")[0], match[1])
        for path in [*files, *PROJECT.glob("*.yaml"), PROJECT / "__main__.py"]
        for match in page_in_text.finditer(path.read_text(encoding="utf-8"))
    }
    assert ("docs/settings.md", None) in named
    for page, anchor in named:
        assert (PROJECT / page).is_file(), page
        text = (PROJECT / page).read_text(encoding="utf-8")
        assert anchor is None or anchor in anchors(text), f"{page}#{anchor}"
        # Who has no clone is told of `homelab docs`.
        assert docs.page(Path(page).stem) == PROJECT / page
        assert anchor is None or 0 < len(docs.section(text, anchor)) < len(text), f"{page}#{anchor}"


def test_the_readme_names_the_version_and_is_a_page() -> None:
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert f"Version {__version__};" in text and len(text.splitlines()) <= 70


def test_the_readmes_picture_is_of_the_recording() -> None:
    page = recording.PAGES["rtx5090"].read_text(encoding="utf-8")
    assert recording.PICTURE.read_text(encoding="utf-8") == recording.picture(page)


def test_headings_get_the_anchors_that_github_gives_them() -> None:
    page = "# Your own host\n\n```sh\n# not a heading\n```\n\n## `hosts.NAME.ssh`\n## NVIDIA's stack: `nvidia`\n## Twice\n### Twice\n"
    assert anchors(page) == ["your-own-host", "hostsnamessh", "nvidias-stack-nvidia", "twice", "twice-1"]


def test_the_readmes_commands_in_their_order_end_outside_of_the_clone(tmp_path: Path) -> None:
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    programs, home = tmp_path / "bin", tmp_path / "home"
    programs.mkdir()
    (home / "homelab" / "lab").mkdir(parents=True)  # a clone, which has a folder lab
    for name in ("make", "pipx", "homelab", "pulumi"):
        (programs / name).write_text('#!/bin/sh\necho "${0##*/} $1 $PWD" >>"$HOME/ran"\n')
        (programs / name).chmod(0o755)
    commands = "\n".join(re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    environment = {"HOME": str(home), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["sh", "-e", "-c", commands], cwd=home / "homelab", env=environment, check=True)
    ran = [line.split() for line in (home / "ran").read_text().splitlines()]
    assert ran[0] == ["pipx", "install", f"{home}/homelab"] and ["homelab", "init", f"{home}/lab"] in ran
    assert {folder for program, _, folder in ran if program in ("homelab", "pulumi")} == {f"{home}/lab"}


def test_readme_pages_examples_and_pictures_name_one_folder_one_release_of_cuda_and_what_init_writes() -> None:
    files = [
        PROJECT / "README.md",
        *PROJECT.glob("docs/*.md"),
        *PROJECT.glob("docs/*.svg"),
        *PROJECT.glob("examples/**/*.y*ml"),
    ]
    text = "\n".join(file.read_text(encoding="utf-8").replace("&#160;", " ") for file in files)
    assert {*re.findall(r"(?:~|/home/anna)/((?:home)?lab)\b", text)} == {"lab"}
    fitting = fitting_cudas(Request.of("vm", Nvidia(driver="580"), cards=("10de:2b85",)))
    assert {*re.findall(r"cuda(?:=|: )\"?(\d+\.\d+)", text)} == {fitting[0]}
    sentences = re.findall(r"This writes [^<\n]*", text)
    assert sentences == ["This writes a Pulumi project with Pulumi.homelab.yaml into ~/lab."] * 2


def test_the_public_address_stands_in_one_place() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    named = re.compile(rb"github\.com/[\w-]+/homelab\b|\bOWNER/homelab\b")
    files = [PROJECT / name for name in listed.split("\0") if name not in ("", "pyproject.toml")]
    assert [file for file in files if file.is_file() and named.search(file.read_bytes())] == []


LINK = re.compile(r"(?<!!)\[[^]]*\]\(([^)\s]+)\)|(?:href|src)=\"([^\"]+)")
# GitHub's own page of the repository, wherever that is: no clone and no package has it.
WORKFLOW = "../../actions/workflows/ci.yml"


def test_each_link_of_readme_pages_and_examples_opens_by_homelab_docs() -> None:
    pages = [
        one
        for one in docs.pages()
        if one.suffix == ".md" and one.parent != PROJECT or one.stem in ("README", "CHANGELOG")
    ]
    assert {*PROJECT.glob("docs/*.md"), *PROJECT.glob("examples/**/README.md")} <= {*pages}
    dead, found = [], 0
    for page in pages:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for link in (match[1] or match[2] for match in LINK.finditer(text)):
            place, _, anchor = link.partition("#")
            if "://" in link or place.startswith(WORKFLOW):
                continue
            found += 1
            there = (page.parent / place).resolve() if place else page
            # A project's own __main__.py opens by its folder.
            is_there = not place or there in (docs.page(place), docs.page(f"{page.parent.name}/{place}"))
            has_anchor = not anchor or anchor in anchors(there.read_text(encoding="utf-8"))
            dead += [] if is_there and has_anchor else [(page.name, link)]
    assert dead == [] and found > 150


def test_homelab_docs_shows_each_page(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for words, first in [
        ([], "# Documents\n"),
        (["settings"], "# Settings\n"),
        (["../docs/settings.md"], "# Settings\n"),
        (["nvidia#cards"], "## Cards\n"),
        (["examples/README.md"], "# Examples\n"),
        (["README.md"], "# homelab\n"),
        (["new-vm", "--path"], f"{PROJECT / 'examples' / 'settings' / 'new-vm.yaml'}\n"),
    ]:
        assert docs.main(words) == 0
        assert capsys.readouterr().out.startswith(first)
    with pytest.raises(SystemExit, match="2"):
        docs.main(["setings"])
    assert "there is no page setings: `homelab docs` lists them" in capsys.readouterr().err
    # At a terminal it is drawn, and each link says where it leads.
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    assert docs.main([]) == 0
    drawn = capsys.readouterr().out
    # Lines to copy are never folded.
    assert docs.main(["troubleshooting"]) == 0
    page = (PROJECT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    code = "".join(re.findall(r"^```\w*\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)).splitlines()
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(len(line) for line in code) > 80 and all(line in shown for line in code)
    assert "# Documents" not in drawn and "Undo (undo.md)" in re.sub(r"\x1b\[[0-9;]*m", "", drawn)
