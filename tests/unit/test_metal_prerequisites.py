"""A machine that can't run the metal tier is told all that it lacks, at once."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable

import pytest

from host.errors import HomelabError
from tests.metal import image, prerequisites


def lacking(name: str) -> Callable[..., str | None]:
    return lambda program, path=None: None if program in (name, "newuidmap") else f"/usr/bin/{program}"


def test_a_missing_program_is_named_by_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lacking("qemu-img"))
    monkeypatch.setattr(prerequisites, "FILES", {"/nowhere/OVMF.fd": "ovmf"})
    with pytest.raises(HomelabError) as error:
        prerequisites.check(image=False)
    assert error.value.found == "missing: ovmf, qemu-utils"
    assert error.value.next_step == "apt-get install ovmf qemu-utils"


def test_a_user_who_may_not_run_mmdebstrap_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(shutil, "which", lacking("no such program"))
    monkeypatch.setattr(prerequisites, "FILES", {})
    with pytest.raises(HomelabError, match="mmdebstrap can't run"):
        prerequisites.check()
    prerequisites.check(image=False)


def test_another_system_than_linux_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(HomelabError, match="this is darwin"):
        prerequisites.check()


def test_another_recipe_is_another_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "mirror", lambda: ("bookworm", ["deb one"]))
    first = image.recipe()
    assert image.recipe() == first
    monkeypatch.setattr(image, "mirror", lambda: ("bookworm", ["deb another"]))
    assert image.recipe() != first
