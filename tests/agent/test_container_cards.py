"""Intel's and AMD's cards in a container: nodes by the card's address, groups as they are inside."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remote_scripts.shared.card_nodes import Cards
from remote_scripts.shared.container_notes import Notes
from remote_scripts.tools.run import Done, Run
from tests.agent.container_kit import AMD, BASE, GROUP, PRIVILEGED, Containers, box
from tests.agent.kit import Refused

__all__ = ["box"]

RENDER, KFD = "/dev/dri/renderD128,gid=104,mode=0660", "/dev/kfd,gid=104,mode=0660"
BOTH, ONE = f"{AMD}=render,kfd", f"{AMD}=render"


@pytest.fixture(autouse=True)
def card(box: Containers) -> None:
    box.drm(AMD, 128)


@pytest.mark.parametrize("state", ["stopped", "running"])
@pytest.mark.parametrize("before", [BASE, PRIVILEGED], ids=["unprivileged", "privileged"])
def test_a_card_of_another_maker_comes_with_the_groups_inside_and_goes_without_a_trace(
    box: Containers, before: str, state: str
) -> None:
    box.state, box.conf = state, before
    after = box.apply("device", f"{AMD}=render,card,kfd")
    options = f"dev0: {RENDER}\ndev1: /dev/dri/card0,gid=44,mode=0660\ndev2: {KFD}\n"
    assert after == before.replace("hostname", f"{options}hostname")
    assert box.apply("device", f"{AMD}=render,card,kfd") == after
    given = Notes(box.host.system(), 300).read().given
    assert (given.cards, given.groups) == (Cards(cards=(f"{AMD}=render,card,kfd",)), {"render": 104, "video": 44})
    box.state = "stopped"
    assert box.revert() == before


def test_a_container_with_ten_devices_of_its_own_keeps_them_all(box: Containers) -> None:
    own = "".join(f"dev{number}: /dev/ttyUSB{number},mode=0600\n" for number in range(10))
    box.conf = text = BASE.replace("hostname", f"{own}hostname")
    assert box.apply("device", BOTH) == text.replace("hostname", f"dev10: {RENDER}\ndev11: {KFD}\nhostname")
    assert box.revert() == text


@pytest.mark.parametrize(
    "lines",
    [
        "dev0: /dev/dri/renderD128,gid=992\ndev1: /dev/kfd\n",
        "lxc.cgroup2.devices.allow: c *:* rwm\nlxc.mount.entry: /dev/dri dev/dri none bind,optional,create=dir\n"
        "lxc.mount.entry: /dev/kfd dev/kfd none bind,create=file\n",
    ],
    ids=["options", "lines"],
)
def test_what_somebody_has_given_it_of_the_card_is_enough(box: Containers, lines: str) -> None:
    box.conf = BASE + lines
    assert box.apply("device", BOTH) == BASE + lines
    assert box.revert() == BASE + lines


@pytest.mark.parametrize(
    ("groups", "options"),
    [
        ("root:x:0:\n", "mode=0666"),
        ("", "mode=0666"),
        ("render:x:992:\nvideo:x:44:\n", "gid=992,mode=0660"),
        ("render:x:0:\n", "mode=0666"),
        ("render:x:99999:\n", "mode=0666"),
        ("render:x:-5:\nrender:x:105:\n", "gid=105,mode=0660"),
        ("render:x:000104:a,b\n", "gid=104,mode=0660"),
        ("render:x:1,mode=0777:\n", "mode=0666"),
        ("renderer:x:7:\n render:x:8:\nrender:x:$(reboot):\n", "mode=0666"),
        ("\0\0render:x:106:\n", "gid=106,mode=0660"),
        ("x" * 100_000 + "\nrender:x:107:\n", "mode=0666"),
    ],
)
def test_a_group_file_may_say_anything(box: Containers, groups: str, options: str) -> None:
    box.inside = groups
    assert f"dev0: /dev/dri/renderD128,{options}\n" in box.apply("device", ONE)


@pytest.mark.parametrize("said", [Done(1, b"", b"no such process\n"), Done(124, b"video:x:44:\n"), Done(0, b"")])
def test_a_container_that_runs_and_doesnt_say_all_its_groups_gets_nothing(box: Containers, said: Done) -> None:
    """By half an answer, a node would be for everybody in it that is for a group."""
    box.state = "running"
    before = box.apply("device", ONE)
    box.host.programs["pct"] = lambda arguments, _stdin: said if arguments[0] == "exec" else box.pct(arguments, b"")
    with pytest.raises(Refused, match="`pct exec 300` didn't list them all"):
        box.apply("device", ONE)
    assert box.conf == before


@pytest.mark.parametrize(("group", "options"), [(104, "mode=0666"), (204, "gid=204,mode=0660")])
def test_a_group_that_has_no_number_on_the_host_is_not_used(box: Containers, group: int, options: str) -> None:
    box.conf = f"{BASE}lxc.idmap: u 0 100000 65536\nlxc.idmap: g 0 100000 100\nlxc.idmap: g 200 100200 65336\n"
    box.inside = f"render:x:{group}:\n"
    assert f"dev0: /dev/dri/renderD128,{options}\n" in box.apply("device", ONE)


@pytest.mark.parametrize("way", ["the file", "the folder", "a pipe", "nothing"])
def test_what_lies_outside_of_a_container_that_is_off_is_not_read(
    box: Containers, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "group").write_text("render:x:777:\n")
    group = box.root / GROUP[1:]
    shutil.rmtree(group.parent)
    if way == "the folder":
        group.parent.symlink_to(tmp_path)
    else:
        group.parent.mkdir()
    if way == "the file":
        group.symlink_to(tmp_path / "group")
    elif way == "a pipe":
        os.mkfifo(group)
    opened: list[str] = []
    real = os.open

    def noted(path: str, *words: Any, **more: Any) -> int:
        opened.append(os.fspath(path))
        return real(path, *words, **more)

    monkeypatch.setattr(os, "open", noted)
    assert "dev0: /dev/dri/renderD128,mode=0666\n" in box.apply("device", BOTH)
    assert way != "a pipe" or "group" not in opened, "opening a device may do something"
    assert box.revert() == BASE


def test_a_look_that_was_cut_short_leaves_no_lock(box: Containers) -> None:
    box.pct(["mount", "300"], b"")
    box.note(mounted=True)
    assert RENDER in box.apply("device", BOTH)
    assert "lock" not in box.conf and "mounted" not in box.noted()
    assert box.revert() == BASE


def test_a_mount_keeps_the_lock_until_it_has_ended_where_its_run_is_killed(
    box: Containers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As any work (test_tools_run.py): else the next run would look before it has mounted."""
    asked: list[str] = []
    plain = Run.ask

    def ask(run: Run, *words: str, **more: Any) -> Done:
        asked.extend(words)
        return plain(run, *words, **more)

    monkeypatch.setattr(Run, "ask", ask)
    box.apply("device", ONE)
    assert ["mount", "300"] in box.calls and "mount" not in asked


def test_what_cant_be_unmounted_stays_noted_until_it_can(box: Containers) -> None:
    box.unmounts_not = True
    for _ in range(2):
        with pytest.raises(Refused, match="it is locked: mounted"):
            box.apply("device", BOTH)
        assert "mounted" in box.noted() and "lock: mounted\n" in box.conf
    box.unmounts_not = False
    assert RENDER in box.apply("device", BOTH) and "lock" not in box.conf
    assert box.revert() == BASE


def test_a_mount_of_somebodys_own_is_left_to_them(box: Containers) -> None:
    box.pct(["mount", "300"], b"")
    with pytest.raises(Refused, match="it is locked: mounted"):
        box.apply("device", BOTH)
    assert "lock: mounted\n" in box.conf


def test_mount_entries_are_for_a_privileged_container(box: Containers) -> None:
    with pytest.raises(Refused, match=r"only their group may open them: /dev/dri/renderD128 \(mode 660\)"):
        box.apply("mount-entry", BOTH)
    assert box.conf == BASE
    box.conf = PRIVILEGED
    after = box.apply("mount-entry", BOTH)
    assert "lxc.cgroup2.devices.allow: c 226:128 rwm\n" in after
    assert "lxc.mount.entry: /dev/kfd dev/kfd none bind,optional,create=file\n" in after
    assert box.revert() == PRIVILEGED


def test_a_card_whose_driver_makes_no_nodes_is_named_and_nothing_is_changed(box: Containers) -> None:
    with pytest.raises(Refused, match="the render node of 0000:06:00.0"):
        box.apply("device", "0000:06:00.0=render")
    assert box.conf == BASE


def test_how_it_differs_from_what_was_set_up_is_said(box: Containers) -> None:
    box.state = "running"
    given = box.apply("device", BOTH)
    assert box.drift() == ["container 300 still has to be restarted"]
    box.ask("apply", "restart", cards=(BOTH,))
    assert box.drift() == []
    box.conf = given.replace(f"dev0: {RENDER}\n", "")
    assert box.drift() == [f"dev[n]: {RENDER} is not there"]
    box.conf = given
    box.drm(AMD, 129)
    assert box.drift() == [
        f"dev[n]: {RENDER.replace('128', '129')} is not there",
        f"dev0: {RENDER} is no longer needed",
    ]
    box.drm(AMD, None)
    assert box.drift() == [f"the render node of {AMD} is not on the host"]
    box.note(given=replace(Notes(box.host.system(), 300).read().given, cards=None))
    assert box.drift() == ["a run was cut short while it gave container 300 its devices"]
