"""The lock file itself: written, read, and held against the settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from homelab.errors import HomelabError
from homelab.nvidia import lock
from homelab.nvidia.lock import LockedPackage, SystemLock
from homelab.nvidia.plan import plan_stack
from homelab.nvidia.request import Request, SystemFacts
from homelab.settings.nvidia import Nvidia

SUM = "ab" * 32
VERSION = "580.95.05-0ubuntu1"
LOCK = SystemLock(
    distribution="ubuntu 24.04",
    driver="580.95.05",
    packages={"libnvidia-compute-580": LockedPackage(version=VERSION, sha256=SUM)},
)
SYSTEM = SystemFacts("ubuntu", "24.04", "x86_64", ("6.8.0-86-generic",), "6.8.0-86-generic", cards=("10de:2b85",))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = lock.path_of(tmp_path, "me/homelab/prod")
    assert path.name == "homelab.prod.lock.yaml" and lock.load(path) == {}
    path.write_text(lock.text_of({"vms.sandbox": LOCK}))
    assert path.read_text().startswith("# Written by python -m homelab lock") and lock.load(path) == {
        "vms.sandbox": LOCK
    }


@pytest.mark.parametrize(
    "text",
    ["version: 2\nsystems: {}\n", "- a\n", "version: 1\nsystems: {a: {distribution: x}}\n", "{", "version: 1\nsystems: {}\nmore: 1\n",
     "version: 1\nsystems: {a: {distribution: ubuntu 24.04, packages: {'a b': {version: '1', sha256: " + SUM + "}}}}\n",
     "version: 1\nsystems: {a: {distribution: ubuntu 24.04, packages: {a: {version: '1\\n2', sha256: " + SUM + "}}}}\n",
     "version: 1\nsystems: {a: {distribution: ubuntu 24.04, packages: {a: {version: '1', sha256: abc}}}}\n"],
)  # fmt: skip
def test_a_file_that_is_no_lock_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "homelab.x.lock.yaml"
    path.write_text(text)
    with pytest.raises(HomelabError, match="homelab.x.lock.yaml"):
        lock.load(path)


def test_only_the_locked_version_counts_as_offered() -> None:
    offered = {"libnvidia-compute-580": ("580.105.08-0ubuntu1", VERSION), "other": ("2", "1")}
    assert LOCK.only(offered) == {"libnvidia-compute-580": (VERSION,), "other": ("2", "1")}
    assert LOCK.only({"libnvidia-compute-580": ("580.105.08-0ubuntu1",)}) == {"libnvidia-compute-580": ()}


def test_a_branch_stands_for_the_locked_release_and_apt_is_told_first() -> None:
    plan = plan_stack(Request("vm", Nvidia(driver="580"), SYSTEM, "vms.sandbox", LOCK))
    assert plan.preferences is not None and plan.preferences.content.startswith(
        f"Package: libnvidia-compute-580\nPin: version {VERSION}\nPin-Priority: 1002\n"
    )
    assert plan.locked == f"libnvidia-compute-580 {VERSION} {SUM}"
    request = Request("vm", Nvidia(driver="580"), SYSTEM, "vms.sandbox", LOCK)
    assert request.driver is not None and str(request.driver.version) == "580.95.05"
    without = plan_stack(Request("vm", Nvidia(driver="580"), SYSTEM, "vms.sandbox"))
    assert without.locked == "" and without.preferences is not None and "1002" not in without.preferences.content


@pytest.mark.parametrize(
    ("settings", "system", "found"),
    [
        (Nvidia(driver="590"), SYSTEM, "those for 580.95.05"),
        (Nvidia(driver="580.105.08"), SYSTEM, "those for 580.95.05"),
        (Nvidia(driver="580"), dataclasses.replace(SYSTEM, version="22.04"), "those for ubuntu 24.04"),
    ],
)
def test_a_lock_of_something_else_than_what_is_wanted_is_refused(
    settings: Nvidia, system: SystemFacts, found: str
) -> None:
    with pytest.raises(HomelabError, match=found) as raised:
        plan_stack(Request("vm", settings, system, "vms.sandbox", LOCK))
    assert "lock --release vms.sandbox" in raised.value.next
