"""The layer container_cards, held to what its forerunners' tests say of a container's lines, and to its own answers."""

from __future__ import annotations

import fcntl
import json
import os
from typing import Any

import pytest

from remote_scripts.guests import requests
from remote_scripts.shared import time_limit
from remote_scripts.shared.container_conf import Method
from tests.agent.card_kit import NOTE, Cards300, box
from tests.agent.container_kit import ALLOW, AMD, BASE, BIND, CONF, NVIDIA, PRIVILEGED, SECOND
from tests.agent.kit import Refused
from tests.agent.test_container_cards import (
    test_a_card_whose_driver_makes_no_nodes_is_named_and_nothing_is_changed,
    test_a_container_that_runs_and_doesnt_say_all_its_groups_gets_nothing,
    test_a_group_file_may_say_anything,
    test_a_group_that_has_no_number_on_the_host_is_not_used,
    test_a_mount_keeps_the_lock_until_it_has_ended_where_its_run_is_killed,
    test_mount_entries_are_for_a_privileged_container,
    test_what_lies_outside_of_a_container_that_is_off_is_not_read,
    test_what_somebody_has_given_it_of_the_card_is_enough,
)
from tests.agent.test_container_gpus import (
    EACH_METHOD,
    SNAPSHOT,
    test_a_container_of_another_node_is_named_with_its_node,
    test_a_host_without_a_driver_says_so,
    test_a_line_of_ours_that_was_there_before_stays,
    test_a_node_that_was_not_made_yet_is_told_from_a_card_that_is_not_there,
    test_a_revert_under_a_former_name_in_the_settings_takes_nothing_out,
    test_a_rule_with_an_old_major_is_left_and_the_right_one_added,
    test_an_id_that_is_a_vms_or_nobodys_is_said,
    test_devices_are_given_beside_lines_that_wait_for_the_next_start,
    test_moved_lines_are_found_again,
    test_nothing_is_changed_while_a_card_is_away,
    test_properties_of_ours_in_another_order_are_ours,
    test_raw_lines_come_above_the_first_section_and_go_without_a_trace,
    test_the_assignment_takes_lines_away_again,
    test_the_digest_tells_what_gives_it_the_devices,
    test_what_has_become_a_template_gives_our_lines_back,
    test_what_others_write_for_it_counts_and_comes_back,
    test_what_somebody_has_given_it_is_enough,
)

__all__ = [
    "box",
    "test_a_card_whose_driver_makes_no_nodes_is_named_and_nothing_is_changed",
    "test_a_container_of_another_node_is_named_with_its_node",
    "test_a_container_that_runs_and_doesnt_say_all_its_groups_gets_nothing",
    "test_a_group_file_may_say_anything",
    "test_a_group_that_has_no_number_on_the_host_is_not_used",
    "test_a_host_without_a_driver_says_so",
    "test_a_line_of_ours_that_was_there_before_stays",
    "test_a_mount_keeps_the_lock_until_it_has_ended_where_its_run_is_killed",
    "test_a_node_that_was_not_made_yet_is_told_from_a_card_that_is_not_there",
    "test_a_revert_under_a_former_name_in_the_settings_takes_nothing_out",
    "test_a_rule_with_an_old_major_is_left_and_the_right_one_added",
    "test_an_id_that_is_a_vms_or_nobodys_is_said",
    "test_devices_are_given_beside_lines_that_wait_for_the_next_start",
    "test_mount_entries_are_for_a_privileged_container",
    "test_moved_lines_are_found_again",
    "test_nothing_is_changed_while_a_card_is_away",
    "test_properties_of_ours_in_another_order_are_ours",
    "test_raw_lines_come_above_the_first_section_and_go_without_a_trace",
    "test_the_assignment_takes_lines_away_again",
    "test_the_digest_tells_what_gives_it_the_devices",
    "test_what_has_become_a_template_gives_our_lines_back",
    "test_what_lies_outside_of_a_container_that_is_off_is_not_read",
    "test_what_others_write_for_it_counts_and_comes_back",
    "test_what_somebody_has_given_it_is_enough",
    "test_what_somebody_has_given_it_of_the_card_is_enough",
]

RENDER, KFD = "/dev/dri/renderD128,gid=104,mode=0660", "/dev/kfd,gid=104,mode=0660"


@pytest.fixture(autouse=True)
def all_cards(box: Cards300) -> None:
    box.nvidia(NVIDIA, SECOND)
    box.drm(AMD, 128)


def test_a_last_line_without_its_end_comes_back_so(box: Cards300) -> None:
    box.conf = before = BASE.removesuffix("\n")
    assert box.apply("mount-entry", minors=(0,)).startswith(f"{BASE}{ALLOW}195:0 rwm\n")
    assert box.revert() == before


def test_dev_options_take_free_numbers_and_keep_them(box: Cards300) -> None:
    box.conf = text = f"arch: amd64\ndev1: /dev/sda\nhostname: box\nmemory: 512\nunprivileged: 1\n{SNAPSHOT}"
    after = box.apply("device", minors=(0,))
    assert "\ndev0: /dev/nvidia0,mode=0666\ndev2: /dev/nvidiactl,mode=0666\n" in after
    assert after.partition("\n[clean]")[2] == text.partition("\n[clean]")[2]
    assert box.apply("device", minors=(0,)) == after
    converted = box.apply("mount-entry", minors=(0,))
    assert "dev1: /dev/sda\n" in converted and "dev0" not in converted and BIND.format("nvidia0") in converted
    assert box.apply("device", minors=(0,)) == after
    assert "dev2: /dev/nvidiactl,mode=0666\n" in box.apply("device", minors=(1,))
    assert box.noted()["revision"] == 4
    assert box.revert() == text


@EACH_METHOD
def test_what_is_locked_isnt_changed_and_where_nothing_changes_that_stands_against_nothing(
    box: Cards300, method: Method
) -> None:
    box.conf = text = f"{BASE}lock: snapshot\n"
    with pytest.raises(Refused, match=r"it is locked: snapshot[\s\S]*pct unlock 300"):
        box.apply(method, minors=(0,))
    assert box.conf == text and box.noted() == {}
    box.conf = BASE
    box.conf = f"{box.apply(method, minors=(0,))}lock: backup\n"
    box.apply(method, minors=(0,))
    box.conf = f"{BASE}lock: backup\n"
    assert box.revert() == f"{BASE}lock: backup\n"


def test_a_lock_that_another_process_holds_is_named(box: Cards300) -> None:
    lock = box.host.write("/run/lock/lxc/pve-config-300.lock", "")
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Refused, match=r"can't lock file '/run/lock/lxc/pve-config-300.lock'"):
            box.apply("mount-entry", minors=(0,))
    assert box.conf == BASE and box.noted() == {} and requests.LOCK_SECONDS == 0


@pytest.mark.parametrize("line", ["lxc.apparmor.profile: unconfined", "delete: swap,lxc"])
def test_lines_that_the_next_start_would_lose_are_not_added_and_named(box: Cards300, line: str) -> None:
    box.conf = text = f"{BASE}[pve:pending]\n{line}\n"
    with pytest.raises(Refused, match="below \\[pve:pending\\](.|\n)*pct reboot 300"):
        box.apply("mount-entry", minors=(0,))
    assert box.conf == text
    box.conf = BASE  # as a reboot leaves it
    given = box.apply("mount-entry", minors=(0,))
    box.conf = text = f"{given}[pve:pending]\n{line}\n"
    with pytest.raises(Refused, match="below \\[pve:pending\\]"):
        box.apply("mount-entry", minors=(0,))
    assert box.drift() == ["its next start takes lxc.* lines away"]
    assert box.revert() == text.replace(given, BASE)


def test_copies_of_homelabs_that_wait_for_the_next_start_are_its_own(box: Cards300) -> None:
    given = box.apply("mount-entry", minors=(0,))
    box.conf = text = f"{given}[pve:pending]\n{given.removeprefix(BASE)}lxc.apparmor.profile: unconfined\n"
    assert box.apply("mount-entry", minors=(0,)) == text and box.drift() == []
    with pytest.raises(Refused, match="below \\[pve:pending\\]"):  # they would come back
        box.revert()
    assert box.conf == text
    box.conf = f"{given}lxc.apparmor.profile: unconfined\n"  # as a start leaves it
    assert box.revert() == f"{BASE}lxc.apparmor.profile: unconfined\n"


@pytest.mark.parametrize("method", ["device", "mount-entry"])
def test_a_change_between_the_reading_and_the_writing_is_read_again(box: Cards300, method: Method) -> None:
    """Somebody with an editor, who takes no lock, at the worst moment: once."""
    real = box.perl

    def late(arguments: Any, stdin: bytes) -> Any:
        if stdin and "tags" not in box.conf:
            box.conf += "tags: mine\n"
        return real(arguments, stdin)

    box.host.programs["perl"] = late
    text = box.apply(method, minors=(0,))
    assert "tags: mine\n" in text and "/dev/nvidia0" in text
    assert box.revert() == f"{BASE}tags: mine\n"


@pytest.mark.parametrize("why", ["kept", "gone"])
def test_of_a_container_that_goes_or_has_gone_what_is_noted_is_forgotten(box: Cards300, why: str) -> None:
    given = box.apply(minors=(0,))
    if why == "gone":
        (box.root / CONF[1:]).unlink()
    box.ask("revert", keep=why == "kept")
    assert box.noted() == {} and (why == "gone" or box.conf == given)


def test_what_is_noted_is_there_on_every_node(box: Cards300) -> None:
    """As a move leaves it: the file is under another node's name, and this node's layer leaves it alone."""
    given, noted, away = box.apply(minors=(0,)), box.noted(), box.root / "etc/pve/nodes/other/lxc/300.conf"
    away.parent.mkdir(parents=True)
    (box.root / CONF[1:]).rename(away)
    assert box.ask("revert")["node"] == "other"
    assert away.read_text() == given and box.noted() == noted
    away.rename(box.root / CONF[1:])
    assert box.revert() == BASE


def test_what_is_noted_and_cant_be_read_isnt_taken_for_nothing(box: Cards300) -> None:
    given = box.apply(minors=(0,))
    box.host.write(NOTE, "half")
    for verb in "read", "apply", "revert":
        with pytest.raises(Refused, match="it isn't what this program has written"):
            box.ask(verb, minors=(0,))
    assert box.conf == given


def test_bytes_of_a_configuration_that_are_no_text_are_kept(box: Cards300) -> None:
    path = box.root / CONF[1:]
    path.write_bytes(before := BASE.encode() + b"#\xff\xfe\n")
    box.ask("apply", minors=(0,))
    assert b"#\xff\xfe\n" in path.read_bytes()
    box.ask("revert")
    assert path.read_bytes() == before


def test_a_hanging_cluster_file_system_ends_it(box: Cards300, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limit, "SECONDS", 0.2)
    box.host.programs["pvedaemon"] = lambda _arguments, _stdin: ""  # it hangs as well
    (box.root / CONF[1:]).unlink()
    os.mkfifo(box.root / CONF[1:])
    with pytest.raises(Refused, match="who has switched container 300"):
        box.apply(minors=(0,))


def test_what_a_killed_writer_has_left_beside_it_goes(box: Cards300) -> None:
    box.host.write(f"{CONF}.tmp.12345", "half")
    box.host.write("/etc/pve/lxc/3000.conf.tmp.1", "another one's")
    box.apply(minors=(0,))
    assert box.left() == ["3000.conf.tmp.1"]


def test_what_a_killed_run_has_left_beside_a_note_goes_also_where_nothing_is_noted(box: Cards300) -> None:
    box.host.write(f"{NOTE}.tmp.12345", "half")
    assert box.revert() == BASE and not box.host.exists("/etc/pve/homelab")


def test_nothing_is_written_before_it_is_noted(box: Cards300) -> None:
    noted: list[dict[str, Any]] = []
    real = box.perl

    def watch(arguments: Any, stdin: bytes) -> Any:
        if stdin:
            noted.append(json.loads(box.host.read(NOTE)))
        return real(arguments, stdin)

    box.host.programs["perl"] = watch
    text = box.apply("mount-entry", minors=(0,))
    assert {*text.splitlines()} - {*BASE.splitlines()} == noted[0]["values"].keys() and noted[0]["text"] == BASE


# -- cards of other makers -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("state", ["stopped", "running"])
@pytest.mark.parametrize("before", [BASE, PRIVILEGED], ids=["unprivileged", "privileged"])
def test_a_card_of_another_maker_comes_with_the_groups_inside(box: Cards300, before: str, state: str) -> None:
    box.state, box.conf = state, before
    after = box.apply("device", f"{AMD}=render,card,kfd")
    for option in (f"dev0: {RENDER}", "dev1: /dev/dri/card0,gid=44,mode=0660", f"dev2: {KFD}"):
        assert f"{option}\n" in after
    assert box.apply("device", f"{AMD}=render,card,kfd") == after and box.state == state
    assert box.noted()["given"]["groups"] == {"render": 104, "video": 44}
    assert box.revert() == before and box.state == state


def test_a_look_that_was_cut_short_leaves_no_lock(box: Cards300) -> None:
    def killed() -> None:
        raise KeyboardInterrupt

    box.after["mount"] = killed
    with pytest.raises(KeyboardInterrupt):
        box.apply("device", f"{AMD}=render")
    assert "lock: mounted\n" in box.conf and box.noted()["mounted"]
    box.after.clear()
    assert RENDER in box.apply("device", f"{AMD}=render")
    assert "lock" not in box.conf and "mounted" not in box.noted()
    assert box.revert() == BASE


def test_what_cant_be_unmounted_stays_noted_until_it_can(box: Cards300) -> None:
    box.unmounts_not = True
    for _ in range(2):
        with pytest.raises(Refused, match="it is locked: mounted"):
            box.apply("device", f"{AMD}=render")
        assert box.noted()["mounted"] and "lock: mounted\n" in box.conf
    box.unmounts_not = False
    assert RENDER in box.apply("device", f"{AMD}=render") and "lock" not in box.conf
    assert box.revert() == BASE


def test_a_mount_of_somebodys_own_is_left_to_them(box: Cards300) -> None:
    box.pct(["mount", "300"], b"")
    with pytest.raises(Refused, match="it is locked: mounted"):
        box.apply("device", f"{AMD}=render")
    assert "lock: mounted\n" in box.conf


def test_how_it_differs_from_what_was_set_up_is_said(box: Cards300) -> None:
    given = box.apply("device", f"{AMD}=render,kfd")
    assert box.drift() == []
    box.conf = given.replace(f"dev0: {RENDER}\n", "")
    assert box.drift() == [f"dev0: {RENDER}"]
    box.conf = given
    box.drm(AMD, 129)
    assert box.drift() == ["dev0 goes", f"dev2: {RENDER.replace('128', '129')}"]
    box.drm(AMD, None)
    assert box.drift()[0] == f"the render node of {AMD} is not on the host"
    box.drm(AMD, 128)
    note = {**json.loads(box.host.read(NOTE)), "shut_down_after": ""}
    box.host.write(NOTE, json.dumps(note))
    assert box.drift() == ["a run was cut short while it changed the container"]
