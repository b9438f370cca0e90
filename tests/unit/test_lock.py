"""The lock file itself: written, read, and held against the settings."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path

import pytest
import yaml

from homelab.cli import command_line
from homelab.cli import lock as command
from homelab.errors import HomelabError
from homelab.nvidia import lock
from homelab.nvidia.compatibility import load
from homelab.nvidia.lock import LockedInstaller, LockedPackage, SystemLock
from homelab.nvidia.outdated import InstalledPackage, PackagesReading, age
from homelab.nvidia.plan import plan_stack
from homelab.nvidia.reading import SystemReading
from homelab.nvidia.request import Request, SystemFacts
from homelab.settings.nvidia import Nvidia
from tests.unit.hosts import KEY

SUM = "ab" * 32
VERSION = "580.95.05-0ubuntu1"
LOCK = SystemLock(
    distribution="ubuntu 24.04",
    driver="580.95.05",
    packages={"libnvidia-compute-580": LockedPackage(version=VERSION, sha256=SUM)},
    installer=LockedInstaller(version="580.95.05", sha256=SUM),
)
SYSTEM = SystemFacts("ubuntu", "24.04", "x86_64", ("6.8.0-86-generic",), "6.8.0-86-generic", cards=("10de:2b85",))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = lock.path_of(tmp_path, "me/homelab/prod")
    assert path.name == "homelab.prod.lock.yaml" and lock.load(path) == {}
    foreign = {"libnvidia-gl-580:i386": LockedPackage(version=VERSION, sha256=SUM)}
    locks = {"vms.sandbox": LOCK, "vms.games": LOCK.model_copy(update={"packages": {**LOCK.packages, **foreign}})}
    path.write_text(lock.text_of(locks))
    assert path.read_text().startswith("# Written by homelab lock") and lock.load(path) == locks


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
    assert LOCK.narrowed(offered) == {"libnvidia-compute-580": (VERSION,), "other": ("2", "1")}
    assert LOCK.narrowed({"libnvidia-compute-580": ("580.105.08-0ubuntu1",)}) == {"libnvidia-compute-580": ()}


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
        (Nvidia.model_validate({"runSha256": {"580.95.05": "cd" * 32}}), SYSTEM, f"those for {SUM}"),
    ],
)
def test_a_lock_of_something_else_than_what_is_wanted_is_refused(
    settings: Nvidia, system: SystemFacts, found: str
) -> None:
    with pytest.raises(HomelabError, match=found) as raised:
        plan_stack(Request("vm", settings, system, "vms.sandbox", LOCK))
    assert "lock --release vms.sandbox" in raised.value.next


# -- the command line --------------------------------------------------------------------------------------------
CONFIG = {
    "homelab:hosts": {"pve": {"address": "192.0.2.10", "ssh": {"hostKey": KEY, "agent": True}, "nvidia": {}}},
    "homelab:containers": {"ai": {"host": "pve", "ctid": 901, "gpuAssignment": "all", "nvidia": {}}},
}
FOUND = PackagesReading(
    "debian 13",
    "580.95.05",
    (InstalledPackage("libcuda1", "580.95.05-1", SUM, "580.105.08-1"), InstalledPackage("gone", "1", "-", "-")),
)


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The options of a stack's own file; each of its systems has the same packages."""
    (tmp_path / "Pulumi.x.yaml").write_text(yaml.safe_dump({"config": CONFIG}))

    def read(place: command.LockedSystem) -> tuple[PackagesReading, SystemReading]:
        return FOUND, SystemReading(
            dataclasses.replace(SYSTEM, distribution="debian", version="13"), "b", frozenset(), ()
        )

    monkeypatch.setattr(command, "_read", read)
    return ["--stack", "x", "--config-file", str(tmp_path / "Pulumi.x.yaml")]


def test_the_command_writes_what_each_system_has_and_forgets_what_is_released(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "homelab.x.lock.yaml"
    assert command.main(options) == 0
    assert set(lock.load(path)) == {"hosts.pve", "containers.ai"} and lock.load(path)["hosts.pve"] == FOUND.lock
    said = capsys.readouterr().out
    assert "hosts.pve: 1 packages, driver 580.95.05" in said
    assert "not locked, since no repository has it: gone 1" in said and f"written: {path}" in said
    assert command.main([*options, "--release", "containers.ai"]) == 0
    assert set(lock.load(path)) == {"hosts.pve"}
    assert command.main([*options, "containers.ai"]) == 0 and set(lock.load(path)) == {"hosts.pve", "containers.ai"}
    assert command.main([*options, "--release"]) == 0 and not path.exists()


def test_a_system_missing_in_the_settings_is_one_error_and_writes_nothing(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["lock", *options, "vms.sandbox"]) == 2
    assert "hosts.pve, containers.ai" in capsys.readouterr().err and not list(tmp_path.glob("homelab.*"))


def test_what_is_newer_is_told_and_is_the_exit_status(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.show_outdated([*options, "hosts.pve"]) == 1
    said = capsys.readouterr().out
    assert "libcuda1: 580.95.05-1 -> 580.105.08-1" in said
    assert f"this program's data on NVIDIA's releases is of {load().as_of}, " in said


@pytest.mark.parametrize(("days", "old"), [(0, False), (90, False), (91, True), (400, True)])
def test_how_old_the_data_is_and_when_that_matters(days: int, old: bool) -> None:
    data = load()
    assert data.as_of is not None
    said = age(data, data.as_of + datetime.timedelta(days))
    assert f"{data.as_of}, {days} days old" in said and ("may be missing" in said) is old
