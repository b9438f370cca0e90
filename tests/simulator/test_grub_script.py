"""lab/host/grub_script.py: what the lab's GRUB does with a custom.cfg."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lab.host.grub_script import Script
from lab.host.state import HostState
from remote_scripts.boot import trial_entry

ESPS = ["AAAA-0001", "BBBB-0002"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for uuid in ESPS:
        (tmp_path / "esp" / uuid / "homelab").mkdir(parents=True)
    (tmp_path / "grub").mkdir()
    return tmp_path


def run(place: Path, *, writable: bool = True, fault: str = "") -> dict[str, str]:
    host: Any = SimpleNamespace(esp=place / "esp", fault=lambda name: name == fault)
    script = Script(cast(HostState, host), place / "grub", writable=writable)
    script.run(trial_entry.section("menuentry 'x' {\n  linux /x\n}\n", [*ESPS, trial_entry.WRITABLE_MENU]))
    return script.variables


def choose(place: Path, value: str, where: str = ESPS[1]) -> Path:
    path = place / "grub/homelab.env" if where == "menu" else place / "esp" / where / trial_entry.ON_ESP
    path.write_bytes(trial_entry.environment(value))
    return path


@pytest.mark.parametrize("where", [*ESPS, "menu"])
def test_a_choice_is_made_taken_in_place_before_the_trial_is_the_default(place: Path, where: str) -> None:
    path = choose(place, "once", where)
    variables = run(place)
    assert (variables["default"], variables["fallback"], variables["boot_once"]) == ("homelab-trial", "0", "true")
    assert path.read_bytes() == trial_entry.environment("taken")
    assert "default" not in run(place), "it was taken"


@pytest.mark.parametrize("value", ["none", "taken", ""])
def test_without_a_choice_nothing_is_changed(place: Path, value: str) -> None:
    path = choose(place, value)
    assert "default" not in run(place) and path.read_bytes() == trial_entry.environment(value)


def test_what_is_kept_is_started_each_time(place: Path) -> None:
    choose(place, "keep")
    assert [run(place)["default"] for _ in range(2)] == ["homelab-trial"] * 2


def test_a_choice_that_grub_cannot_write_starts_no_trial(place: Path) -> None:
    choose(place, "once", "menu")
    assert "default" not in run(place, writable=False)
    choose(place, "none", "menu")
    choose(place, "once")
    assert "default" not in run(place, fault="grub-cannot-write")


def test_an_esp_that_is_unplugged_is_passed_over(place: Path) -> None:
    (place / "esp" / ESPS[0]).rename(place / "unplugged")
    choose(place, "once")
    assert run(place)["default"] == "homelab-trial"


def test_what_the_labs_grub_does_not_know_is_said(place: Path) -> None:
    host: Any = SimpleNamespace(esp=place, fault=lambda _name: None)
    with pytest.raises(ValueError, match="no command"):
        Script(cast(HostState, host), place, writable=True).run("chainloader +1\n")
    with pytest.raises(ValueError, match="no test"):
        Script(cast(HostState, host), place, writable=True).run("if [ -d /x ]; then\nfi\n")
