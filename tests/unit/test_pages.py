"""Pages that messages name, what README.md names and its commands, and the anchors of headings. Links between pages: `make lint`."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

from docs.tables.markdown import anchors
from homelab import __version__
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
        assert anchor is None or anchor in anchors((PROJECT / page).read_text(encoding="utf-8")), f"{page}#{anchor}"


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
    # What a clone of this repository has for `mkdir lab` to trip over.
    clones = 'mkdir -p "${2##*/}/lab"\n'
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    address = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
    assert f"git clone {address};" in text
    assert f"pipx install git+{address} " in text
    assert f'"git+{address}"' in (PROJECT / "examples" / "github" / "preview.yml").read_text(encoding="utf-8")
    programs, home = tmp_path / "bin", tmp_path / "home"
    programs.mkdir()
    home.mkdir()
    for name in ("git", "make", "pipx", "homelab", "pulumi"):
        (programs / name).write_text('#!/bin/sh\necho "${0##*/} $1 $PWD" >>"$HOME/ran"\n' + clones * (name == "git"))
        (programs / name).chmod(0o755)
    commands = "\n".join(re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    environment = {"HOME": str(home), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["sh", "-e", "-c", commands], cwd=home, env=environment, check=True)
    ran = [line.split() for line in (home / "ran").read_text().splitlines()]
    assert ran[0] == ["pipx", "install", str(home)] and ["homelab", "init", f"{home}/lab"] in ran
    assert {folder for program, _, folder in ran if program in ("homelab", "pulumi")} == {f"{home}/lab"}
