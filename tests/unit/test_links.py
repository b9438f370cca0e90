"""Every link in the pages that people read leads somewhere: to a file, and to a heading of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from homelab import __version__
from homelab.markdown import anchors
from tests.conftest import PROJECT, ours_below

PAGES = [
    *PROJECT.glob("*.md"),
    *(
        path
        for folder in ("bench", "docs", "engine", "examples", "lab", "remote_scripts")
        for path in ours_below(PROJECT / folder, ".md")
    ),
]
_LINK = re.compile(r"\]\((?!https?://|mailto:)([^)\s#]*)(?:#([^)\s]+))?\)")
_PAGE_IN_TEXT = re.compile(r"\bdocs/[a-z-]+\.md(?:#([a-z-]+))?")


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def test_every_link_leads_somewhere() -> None:
    broken = []
    for page in PAGES:
        for path, anchor in _LINK.findall(without_code(page.read_text(encoding="utf-8"))):
            target = (page.parent / path).resolve() if path else page
            if not target.exists():
                broken.append((page, path))
            elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
                broken.append((page, f"{path}#{anchor}"))
    assert broken == []


def test_a_page_in_an_environment_of_an_example_is_none_of_the_project(tmp_path: Path) -> None:
    """Pulumi makes examples/gaming_vm/.venv where a person, or a test, runs that example."""
    for name in ("README.md", "more/README.md", ".venv/lib/numpy/README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert {path.relative_to(tmp_path).as_posix() for path in ours_below(tmp_path, ".md")} == {
        "README.md",
        "more/README.md",
    }
    assert PROJECT / "examples/gaming_vm/README.md" in PAGES


def test_a_message_that_names_a_page_names_one_that_is_there() -> None:
    places = [PROJECT / "homelab", PROJECT / "components", PROJECT / "remote_scripts"]
    files = [path for place in places for path in place.rglob("*") if path.suffix in (".py", ".sh", ".yaml")]
    named = {
        (match[0].partition("#")[0], match[1])
        for path in [*files, *PROJECT.glob("*.yaml"), PROJECT / "__main__.py"]
        for match in _PAGE_IN_TEXT.finditer(path.read_text(encoding="utf-8"))
    }
    assert ("docs/settings.md", None) in named
    for page, anchor in named:
        assert (PROJECT / page).is_file(), page
        assert anchor is None or anchor in anchors((PROJECT / page).read_text(encoding="utf-8")), f"{page}#{anchor}"


@pytest.mark.parametrize("page", sorted((PROJECT / "docs").rglob("*.md")), ids=lambda page: page.stem)
def test_a_page_is_one_that_is_read_at_once(page: Path) -> None:
    assert len(page.read_text(encoding="utf-8").split()) <= 1500, "a page for each task"


def test_the_readme_names_the_version_and_is_a_page() -> None:
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert f"Version {__version__};" in text and len(text.splitlines()) <= 90


@pytest.mark.parametrize("number", sorted(int(path.name[:4]) for path in (PROJECT / "docs/adr").glob("0*.md")))
def test_every_decision_is_in_the_index_by_its_title(number: int) -> None:
    (decision,) = (PROJECT / "docs/adr").glob(f"{number:04}-*.md")
    title = decision.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    (line,) = [
        line
        for line in (PROJECT / "docs/adr/README.md").read_text(encoding="utf-8").splitlines()
        if f"({decision.name})" in line
    ]
    assert line.startswith(f"| {number} | [{title}]({decision.name}) | accepted")


def test_headings_get_the_anchors_that_github_gives_them() -> None:
    page = "# Your own host\n\n```sh\n# not a heading\n```\n\n## `hosts.NAME.ssh`\n## NVIDIA's stack: `nvidia`\n## Twice\n### Twice\n"
    assert anchors(page) == ["your-own-host", "hostsnamessh", "nvidias-stack-nvidia", "twice", "twice-1"]
