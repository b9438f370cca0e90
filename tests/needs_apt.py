"""For tests whose simulated systems install packages, by this machine's apt and dpkg (lab/PACKAGES.md)."""

from __future__ import annotations

import shutil

import pytest


def here() -> None:
    """Skip the tests of the module that is being imported, where this machine has none."""
    if not shutil.which("apt-get"):
        pytest.skip("this machine has no apt, by which the lab's systems install packages", allow_module_level=True)
