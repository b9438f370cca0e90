"""README.md: one page, from which a stranger begins."""

from __future__ import annotations

from tests.conftest import PROJECT

README = (PROJECT / "README.md").read_text(encoding="utf-8")


def test_it_is_one_page() -> None:
    assert len(README.splitlines()) <= 120


def test_a_hosts_owner_begins_with_homelab_init() -> None:
    own = README.partition("## Your own host")[2].partition("\n## ")[0]
    assert own.index("pulumi install") < own.index("homelab init ") < own.index("pulumi up --stack")


def test_it_says_what_needs_linux() -> None:
    assert "The simulated hosts need Linux." in " ".join(README.split())
