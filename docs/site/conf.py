"""The documents as a site: `make docs` builds it in `.site`, from the pages as they lie in the repository.

The contents at its side are in contents.md; a page that isn't in them, and a link that leads nowhere, fail the build.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from sphinx.application import Sphinx

from homelab import __version__

_HERE = Path(__file__).parent
_URLS = tomllib.loads((_HERE.parents[1] / "pyproject.toml").read_text("utf-8"))["project"].get("urls", {})

project = "homelab"
extensions = ["myst_parser"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "*/README.md", "*/*/README.md"]
exclude_patterns = [".*", "docs/site", "tests/[!b]*", "**/.venv"]
# Headings get the anchors that the pages' links have, which are GitHub's.
myst_heading_anchors = 4
highlight_language = "none"
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["wide.css"]
html_title = f"homelab {__version__}"
# Below each page: where it comes from, where that is known.
_FOOTER = [{"name": name, "url": at, "html": f"homelab {__version__}, {at}", "class": ""} for name, at in _URLS.items()]
html_theme_options = {"footer_icons": _FOOTER}
html_extra_path = ["index.html"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False


def _with_contents(_app: Sphinx, name: str, text: list[str]) -> None:
    """The first page has the contents of all; in a repository's view they would be in the way."""
    if name == root_doc:
        text[0] += f"\n{(_HERE / 'contents.md').read_text(encoding='utf-8')}"


def setup(app: Sphinx) -> None:
    """Sphinx calls it."""
    app.connect("source-read", _with_contents)
