"""Lines of a container that has its cards by the layer container_cards follow their nodes, as test_card_nodes.py says it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from remote_scripts.guests import container_follow
from remote_scripts.shared import guest_notes
from remote_scripts.tools import disk
from tests.agent.card_kit import NOTE, Cards300, box
from tests.agent.container_kit import AMD, BASE, NVIDIA
from tests.agent.test_card_nodes import (
    METHODS,
    RENDER,
    given,
    method,
    test_a_boot_leaves_the_lines_of_nvidias_nodes_that_are_not_there_yet,
    test_a_boot_that_moved_a_node_is_followed_and_told_and_undone_with_the_rest,
    test_a_boot_that_moved_nothing_changes_nothing_even_where_somebody_has,
    test_a_boot_that_moved_nvidias_node_is_followed_also_where_no_other_maker_has_a_card,
    test_a_container_that_is_gone_keeps_no_boot_waiting,
    test_a_line_that_had_to_go_comes_back_with_the_card,
    test_a_node_that_somebody_gives_it_already_is_given_once_and_ours_comes_back_after_that,
    test_a_node_that_the_kernel_knows_and_udev_has_not_made_is_waited_for,
    test_another_container_under_the_same_number_gets_nothing,
    test_nvidias_own_numbers_follow_the_card,
    test_rules_follow_the_numbers_also_where_somebodys_own_was_enough,
    test_two_cards_that_take_each_others_numbers_are_both_there_in_the_end,
    test_what_was_late_at_one_boot_is_followed_at_the_next,
    test_where_nothing_has_moved_somebodys_own_lines_change_nothing,
)

__all__ = [
    "box",
    "given",
    "method",
    "test_a_boot_leaves_the_lines_of_nvidias_nodes_that_are_not_there_yet",
    "test_a_boot_that_moved_a_node_is_followed_and_told_and_undone_with_the_rest",
    "test_a_boot_that_moved_nothing_changes_nothing_even_where_somebody_has",
    "test_a_boot_that_moved_nvidias_node_is_followed_also_where_no_other_maker_has_a_card",
    "test_a_container_that_is_gone_keeps_no_boot_waiting",
    "test_a_line_that_had_to_go_comes_back_with_the_card",
    "test_a_node_that_somebody_gives_it_already_is_given_once_and_ours_comes_back_after_that",
    "test_a_node_that_the_kernel_knows_and_udev_has_not_made_is_waited_for",
    "test_another_container_under_the_same_number_gets_nothing",
    "test_nvidias_own_numbers_follow_the_card",
    "test_rules_follow_the_numbers_also_where_somebodys_own_was_enough",
    "test_two_cards_that_take_each_others_numbers_are_both_there_in_the_end",
    "test_what_was_late_at_one_boot_is_followed_at_the_next",
    "test_where_nothing_has_moved_somebodys_own_lines_change_nothing",
]


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("no driver", "not there after 0 s: renderD of 0000:0c:00.0"),
        ("a lock", "CT is locked (backup)"),
        ("a broken note", "it isn't what this program has written"),
    ],
)
def test_no_boot_fails_for_it(box: Cards300, trouble: str, said: str) -> None:
    box.drm(AMD, None if trouble == "no driver" else 129)
    if trouble == "a lock":
        box.conf += "lock: backup\n"
    elif trouble == "a broken note":
        box.host.write(NOTE, "x")
    before = box.conf
    assert said in box.boot() and box.conf == before


def test_a_quorum_is_waited_for(box: Cards300, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_follow, "QUORUM_SECONDS", 60.0)
    box.drm(AMD, 129)
    create, tried = disk.create, list[Path]()

    def denied(path: Path, mode: int) -> int:
        """As pmxcfs that has made itself read-only."""
        if "/homelab/lxc-" in str(path):
            tried.append(path)
            if len(tried) < 3:
                raise OSError(errno.EACCES, "Permission denied")
        return create(path, mode)

    monkeypatch.setattr(disk, "create", denied)
    assert "wanted:" not in box.boot() and "renderD129" in box.conf and len(tried) == 4


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("method", METHODS)
def test_a_boot_that_is_cut_short_is_made_good_by_the_next(
    box: Cards300, given: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first note, the text, the second note; also where a run was killed before the boot, it is started."""
    left = [number]

    def stop() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    replace = guest_notes.write

    def write(*arguments: Any) -> None:
        replace(*arguments)
        stop()

    box.drm(AMD, 129)
    with monkeypatch.context() as killed:
        killed.setattr(guest_notes, "write", write)
        box.after["perl"] = stop
        with pytest.raises(KeyboardInterrupt):
            box.boot()
    box.after.clear()
    box.boot()
    assert "renderD128" not in box.conf and "renderD129" in box.conf
    assert box.drift() == [] and box.revert() == given


def test_what_a_run_that_was_killed_before_the_boot_has_noted_stays(box: Cards300) -> None:
    note = box.host.read(NOTE)
    box.host.write(NOTE, note.replace('"shut_down_after": null', '"shut_down_after": "UPID:x"'))
    box.drm(AMD, 129)
    assert "other names or numbers" in box.boot()
    assert box.noted()["shut_down_after"] == "UPID:x" and RENDER.replace("128", "129") in box.conf
    assert NVIDIA not in box.conf and box.conf != BASE
