"""Pages that messages name, the version that README.md names, and the anchors of headings. Links between pages: `make lint`."""

from __future__ import annotations

import re

from homelab import __version__
from homelab.markdown import anchors
from tests.conftest import PROJECT
from tests.e2e import recording

_PAGE_IN_TEXT = re.compile(r"\bdocs/[a-z-]+\.md(?:#([a-z-]+))?")


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


def test_the_readme_names_the_version_and_is_a_page() -> None:
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert f"Version {__version__};" in text and len(text.splitlines()) <= 90


def test_the_readmes_picture_is_of_the_recording() -> None:
    page = recording.PAGES["rtx5090"].read_text(encoding="utf-8")
    assert recording.PICTURE.read_text(encoding="utf-8") == recording.picture(page)


def test_headings_get_the_anchors_that_github_gives_them() -> None:
    page = "# Your own host\n\n```sh\n# not a heading\n```\n\n## `hosts.NAME.ssh`\n## NVIDIA's stack: `nvidia`\n## Twice\n### Twice\n"
    assert anchors(page) == ["your-own-host", "hostsnamessh", "nvidias-stack-nvidia", "twice", "twice-1"]
